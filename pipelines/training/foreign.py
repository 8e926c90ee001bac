"""torchvision's classification networks with weights from a file, as they were published or fine-tuned elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipelines.core.errors import UserError
from pipelines.core.foreign import ForeignModel, Origin
from pipelines.core.pixelset import Pixels
from pipelines.core.preprocessing import PreprocessingSpec, resized_and_cropped
from pipelines.core.starting_weights import sha256_of
from pipelines.training import export, published
from pipelines.training.pixel_rows import standardized

_NAMED = 5
"""Keys that an error names."""


class TorchvisionNetwork:
    """Fulfils `core.ports.ForeignNetwork`. Raises UserError for weights that do not fit."""

    def __init__(self, model: ForeignModel) -> None:
        path = Path(model.file)
        state = _read(path)
        sha256 = sha256_of(path)
        known = published.find(model.architecture, sha256)
        network, num_classes = _build(model.architecture, state, path, transforms_input=known is not None)
        self.class_names = _class_names(model, num_classes)
        transforms = (known or published.first_weights(model.architecture)).transforms()
        self.spec = _spec(model, transforms)
        self.origin = Origin(
            form="torchvision",
            file=path.name,
            sha256=sha256,
            size_bytes=path.stat().st_size,
            architecture=model.architecture,
        )
        mean, std = model.mean or tuple(transforms.mean), model.std or tuple(transforms.std)
        self.notes: Sequence[str] = (
            f"weights: {f'published as {known}' if known else 'not a file that torchvision published'}",
            f"pixels: {_described(self.spec)}, mean {_numbers(mean)}, std {_numbers(std)}"
            + ("" if known else f"; assumed as for the published weights of {model.architecture}"),
        )
        self._module = _House(network, num_classes, mean, std).eval()

    def logits(self, pixels_NHWC: Pixels, threads: int) -> NDArray[np.float32]:  # noqa: N803
        return export.reference_logits(self._module, pixels_NHWC, threads)

    def write(self, temperature: float, path: Path) -> int:
        return export.export_onnx(self._module, temperature, self.spec, path)


class _House(nn.Module):
    """A network with its normalization in front, which tells the input of its last layer as the embedding."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, num_classes: int, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(mean), persistent=False)
        self.register_buffer("std", torch.tensor(std), persistent=False)
        self._seen: list[Tensor] = []
        _head(network, num_classes).register_forward_pre_hook(lambda _, inputs: self._seen.append(inputs[0]))

    def forward(self, pixels_NHWC: Tensor) -> tuple[Tensor, Tensor]:  # noqa: N803
        """uint8 [N, H, W, 3] to logits [N, num classes] and embedding [N, D]."""
        self._seen.clear()
        logits: Tensor = self.network(standardized(pixels_NHWC, self.mean, self.std))
        embedding = self._seen[-1]
        self._seen.clear()
        # A convolution as head (SqueezeNet's) has a feature map before it.
        return logits, embedding.mean((2, 3)) if embedding.ndim == 4 else embedding


def _head(network: nn.Module, num_classes: int) -> nn.Module:
    """The last layer that has an output for each class; those of training's auxiliary heads come before it or have
    names of their own.
    """
    found = [
        module
        for name, module in network.named_modules()
        if not name.lower().startswith("aux")
        and num_classes in (getattr(module, "out_features", None), getattr(module, "out_channels", None))
    ]
    head: nn.Module = found[-1]
    return head


def _read(path: Path) -> Mapping[str, Tensor]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(f"--weights {path}: not a readable state dict ({str(error).splitlines()[0]})") from error
    if not isinstance(state, Mapping) or not all(isinstance(one, Tensor) for one in state.values()):
        raise UserError(
            f"--weights {path}: not a state dict, which maps names to tensors; save model.state_dict() alone"
        )
    return state


def _build(
    architecture: str, state: Mapping[str, Tensor], path: Path, *, transforms_input: bool
) -> tuple[nn.Module, int]:
    """The network in evaluation mode with exactly these weights, and its number of classes: the file's."""
    usual = len(published.class_names(architecture))
    network = published.build(architecture, usual, transforms_input=transforms_input)
    num_classes = _num_classes(network, usual, state)
    if num_classes != usual:
        network = published.build(architecture, num_classes, transforms_input=transforms_input)
    own = network.state_dict()
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in state if key not in own]
    shaped = [
        f"{key} {list(state[key].shape)} instead of {list(own[key].shape)}"
        for key in own
        if key in state and own[key].shape != state[key].shape
    ]
    wrong = {"it lacks": missing, "it has": unexpected, "of another shape": shaped}
    if any(wrong.values()):
        words = "; ".join(f"{word} {_some(keys)}" for word, keys in wrong.items() if keys)
        raise UserError(f"--weights {path}: not the weights of torchvision's {architecture}: {words}")
    network.load_state_dict(state, strict=False)  # only such counters can be missing, which older files have none of
    return network.eval(), num_classes


def _num_classes(network: nn.Module, usual: int, state: Mapping[str, Tensor]) -> int:
    """As many as the head in the file has; the usual number where the file has no such head."""
    head = _head(network, usual)
    bias = state.get(f"{next(name for name, module in network.named_modules() if module is head)}.bias")
    return usual if bias is None or bias.ndim != 1 else len(bias)


def _class_names(model: ForeignModel, num_classes: int) -> tuple[str, ...]:
    if model.classes:
        if len(model.classes) != num_classes:
            raise UserError(f"--classes has {len(model.classes)} names, {model.file} {num_classes} classes")
        return model.classes
    names = published.class_names(model.architecture)
    if len(names) != num_classes:
        raise UserError(
            f"{model.file}: a head of {num_classes} classes and not ImageNet's {len(names)}; name them with --classes "
            "FILE, one a line, in the model's order"
        )
    return names


def _spec(model: ForeignModel, transforms: Any) -> PreprocessingSpec:
    size = model.size or transforms.crop_size[0]
    # Another size keeps the published share of the image.
    resize = model.resize or round(transforms.resize_size[0] * size / transforms.crop_size[0])
    return resized_and_cropped(size, size, resize, model.filter or transforms.interpolation.value)


def _described(spec: PreprocessingSpec) -> str:
    return f"shorter side to {spec.resize} px ({spec.filter}), centre {spec.width} x {spec.height}"


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _some(keys: Sequence[str]) -> str:
    more = f" and {len(keys) - _NAMED} more" if len(keys) > _NAMED else ""
    return ", ".join(keys[:_NAMED]) + more
