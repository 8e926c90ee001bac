"""The embeddings of `features.embedding` as torch modules, so that they can be part of an exported graph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from pipelines.core.embedding import CELLS, HUES, ORIENTATIONS, QUARTERS, SHAPE_SHARE, SIDE_PX
from pipelines.core.embedding_name import parse
from pipelines.core.errors import UserError
from pipelines.training.pixel_rows import standardized

_HEADS = ("fc", "classifier", "heads", "head")
# Mean and standard deviation of ImageNet's RGB in 0..1: what torchvision's weights were trained with.
_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)


def build(text: str, *, weights: bool = True) -> nn.Module:
    """The module of a `features.embedding`: uint8 [N, H, W, 3] to unit rows float32 [N, D], in evaluation mode.

    Without `weights` those of a backbone are left random, for a state dict to fill. Packages are no modules: recipes
    refuse them. Raises UserError for weights that do not fit.
    """
    name = parse(text)
    if name.kind == "hog-color-v1":
        return HogColor().eval()
    try:
        return TorchvisionFeatures(name.backbone, name.path if weights else None).eval()
    except ValueError as error:
        raise UserError(f"features.embedding = {text!r}: {error}") from error


class TorchvisionFeatures(nn.Module):
    """The pooled features of a torchvision backbone, scaled to unit length.

    `weights` is a state-dict file as torchvision publishes them (loaded without running any code in it); None leaves
    them random. Raises ValueError where the backbone is unknown or the weights do not fit it.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: str, weights: Path | None) -> None:
        import torchvision  # half a second that other trainings need not pay for

        super().__init__()
        if backbone not in torchvision.models.list_models(module=torchvision.models):
            raise ValueError(f"torchvision has no backbone {backbone!r}")
        network: nn.Module = torchvision.models.get_model(backbone, weights=None)
        head = next(name for name in _HEADS if hasattr(network, name))
        setattr(network, head, nn.Identity())
        if weights is not None:
            _load(network, backbone, head, weights)
        self.network = network
        self.register_buffer("mean", torch.tensor(_MEAN), persistent=False)
        self.register_buffer("std", torch.tensor(_STD), persistent=False)

    def forward(self, pixels_NHWC: Tensor) -> Tensor:  # noqa: N803
        """Unit rows [N, D] for uint8 [N, H, W, 3]."""
        features = self.network(standardized(pixels_NHWC, self.mean, self.std))
        return nn.functional.normalize(features.flatten(1), dim=1)


def _load(network: nn.Module, backbone: str, head: str, weights: Path) -> None:
    try:
        state = torch.load(weights, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"{weights}: not a readable state dict ({error})") from error
    # The file may be for another number of classes: the head is not used.
    body = {key: value for key, value in state.items() if key.split(".")[0] != head}
    try:
        missing, unexpected = network.load_state_dict(body, strict=False)
    except RuntimeError as error:
        raise ValueError(f"{weights}: not the weights of {backbone}: {error}") from error
    if wrong := [*missing, *unexpected]:
        raise ValueError(f"{weights}: not the weights of {backbone}: {', '.join(wrong[:3])}")


class HogColor(nn.Module):
    """`hog-color-v1` (core.embedding.HogColorV1), operation by operation.

    The roots of sums near zero magnify differences in the last bit, so everything before them happens in the same order
    on the same float32 numbers as there.
    """

    edges: Tensor
    hues: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("edges", _directions(ORIENTATIONS), persistent=False)
        self.register_buffer("hues", _directions(HUES), persistent=False)

    def forward(self, pixels_NHWC: Tensor) -> Tensor:  # noqa: N803
        """Unit rows [N, 128] for uint8 [N, 32, 32, 3]."""
        planes = pixels_NHWC.permute(0, 3, 1, 2).float() / 255
        red, green, blue = planes[:, 0:1], planes[:, 1:2], planes[:, 2:3]
        luma = 0.299 * red + 0.587 * green + 0.114 * blue
        shape = _spread(self._edges(luma)) * SHAPE_SHARE**0.5
        colour = _spread(self._colours(red, green, blue, luma)) * (1 - SHAPE_SHARE) ** 0.5
        return _unit(torch.cat([shape, colour], dim=1))

    def _edges(self, luma: Tensor) -> Tensor:
        """Edge strength by cell and unsigned orientation [N, 96] of luma [N, 1, 32, 32]."""
        padded = nn.functional.pad(luma, (1, 1, 1, 1), mode="replicate")
        right = padded[:, :, 1:-1, 2:] - padded[:, :, 1:-1, :-2]
        down = padded[:, :, 2:, 1:-1] - padded[:, :, :-2, 1:-1]
        across, along = right * right, down * down
        scale = 1 / (across + along).sqrt().clamp(min=1e-6)
        cosine = (across - along) * scale
        sine = 2 * right * down * scale
        return _sums(torch.relu(cosine * self.edges[0] + sine * self.edges[1]), ORIENTATIONS, CELLS)

    def _colours(self, red: Tensor, green: Tensor, blue: Tensor, luma: Tensor) -> Tensor:
        """Hues by strength, darkness and brightness of each quarter [N, 32]."""
        alpha = red - 0.5 * (green + blue)
        beta = (3**0.5 / 2) * (green - blue)
        hues = torch.relu(alpha * self.hues[0] + beta * self.hues[1])
        return _sums(torch.cat([hues, 0.5 * (1 - luma), 0.5 * luma], dim=1), HUES + 2, QUARTERS)


def _directions(number: int) -> Tensor:
    """Cosines and sines [2, number, 1, 1] of evenly spread angles."""
    angles = 2 * np.pi * np.arange(number) / number
    return torch.from_numpy(np.stack([np.cos(angles), np.sin(angles)]).astype(np.float32)).view(2, number, 1, 1)


def _sums(planes: Tensor, number: int, cells: int) -> Tensor:
    """Sums over a grid of cells: [N, number, 32, 32] to [N, number x cells²]."""
    side = SIDE_PX // cells
    return planes.reshape(-1, number, cells, side, cells, side).sum(dim=(3, 5)).flatten(1)


def _spread(rows: Tensor) -> Tensor:
    """Unit rows of the roots less their mean."""
    roots = rows.sqrt()
    return _unit(roots - roots.mean(dim=1, keepdim=True))


def _unit(rows: Tensor) -> Tensor:
    return rows / (rows * rows).sum(dim=1, keepdim=True).sqrt().clamp(min=1e-12)
