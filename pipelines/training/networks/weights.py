"""Weights to start from: a file, or torchvision's own where there is a network."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from pipelines.core.errors import UserError
from pipelines.core.recipe import Model
from pipelines.core.starting_weights import path_of
from pipelines.training.networks.network import Network


def load_weights(network: Network, model: Model) -> None:
    """Start from a state dict of torchvision's network or of one of ours; what belongs to another head is left out.

    Raises UserError for a file that cannot be read or does not fit.
    """
    path = path_of(model)
    state = _published(model.backbone) if path is None else _read(path)
    ours = any(key.startswith("body.") for key in state)
    target: nn.Module = network if ours else network.body.layers
    own = target.state_dict()
    fitting = {key: value for key, value in state.items() if key in own and own[key].shape == value.shape}
    missing = [
        key
        for key in own
        # Files of torch 0.4 and before, torchvision's oldest among them, count no batches; nothing here reads counts.
        if key not in fitting and (not ours or key.startswith("body.")) and not key.endswith("num_batches_tracked")
    ]
    if missing:
        raise UserError(f"model.weights = {model.weights!r}: not of {model.backbone}, it lacks {missing[0]}")
    target.load_state_dict(fitting, strict=False)
    network.has_weights = True


def _read(path: Path) -> Mapping[str, Tensor]:
    try:
        state: Mapping[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(f"model.weights = {str(path)!r}: not a readable state dict ({error})") from error
    return state


def _published(backbone: str) -> Mapping[str, Tensor]:
    import torchvision

    try:
        weights = torchvision.models.get_model_weights(backbone).DEFAULT
        # check_hash looks at what is downloaded only, not at a file that lies in the cache.
        state: Mapping[str, Tensor] = weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except Exception as error:
        raise UserError(
            f"model.weights = 'torchvision': cannot get the weights of {backbone} ({error}); download them where there "
            "is a network and name the file"
        ) from error
    return state
