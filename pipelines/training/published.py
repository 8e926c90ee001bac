"""torchvision's classification networks and the weights that it published for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipelines.core.errors import UserError

_HASH_DIGITS = 8
"""Of a published file's SHA-256, in its name."""
_AUXILIARY = ("googlenet", "inception_v3")


def architectures() -> list[str]:
    """Names of torchvision's classification networks."""
    import torchvision  # half a second that other trainings need not pay for

    found: list[str] = torchvision.models.list_models(module=torchvision.models)
    return found


def build(architecture: str, num_classes: int, *, transforms_input: bool) -> nn.Module:
    """The network with random weights. `transforms_input`: as published GoogLeNet and Inception expect it, whose
    weights were trained on another normalization, which they redo inside.
    """
    import torchvision

    # Drawing weights that will be replaced takes these two seconds.
    options = {"init_weights": False, "transform_input": transforms_input} if architecture in _AUXILIARY else {}
    network: nn.Module = torchvision.models.get_model(architecture, weights=None, num_classes=num_classes, **options)
    return network


def first_weights(architecture: str) -> Any:
    """torchvision's entry of the weights that the network was first published with; its preprocessing suits most
    files.
    """
    return next(iter(_weights(architecture)))


def class_names(architecture: str) -> tuple[str, ...]:
    """Of the published weights: ImageNet's thousand."""
    return tuple(first_weights(architecture).meta["categories"])


def find(architecture: str, sha256: str) -> Any:
    """torchvision's entry of the published weights whose file this is, if any: its name holds the digest's start."""
    return next((one for one in _weights(architecture) if f"-{sha256[:_HASH_DIGITS]}." in one.url), None)


def download(architecture: str, folder: Path) -> Path:
    """torchvision's newest published weights, fetched into `folder` unless they are there. Raises UserError."""
    url: str = _weights(architecture).DEFAULT.url
    path = folder / Path(url).name
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(url, str(path), path.stem.rpartition("-")[2], progress=False)
    except Exception as error:
        raise UserError(
            f"cannot download the weights of {architecture} from {url} ({error}); get the file where there is a "
            "network and name it with --weights"
        ) from error
    return path


def _weights(architecture: str) -> Any:
    import torchvision

    if architecture not in architectures():
        raise UserError(f"--torchvision {architecture}: no such network; torchvision has {', '.join(architectures())}")
    return torchvision.models.get_model_weights(architecture)
