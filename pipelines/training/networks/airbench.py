"""The network of Keller Jordan's airbench94 (github.com/KellerJordan/cifar10-airbench, MIT; arXiv:2404.00498).

Its first layer is fixed: 2 x 2 filters that whiten patches of the training images, each with both signs. Three pairs of
wide convolutions follow. Batch norms have no scale and forget fast, since the training is short.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from pipelines.core.recipe import Model
from pipelines.training.networks.network import Body, Traits

_WIDTHS = (64, 256, 256)
_PATCH = 2
_NUM_WHITENED = 2 * 3 * _PATCH**2
_EPSILON = 5e-4
"""Added to the patches' variances: keeps noise in directions of little variance small."""

TRAITS = Traits(
    scale_invariant=True,
    summed_rates=(0.053, 0.67),
    early={"body.layers.0.bias": 3 / 8},
)


def airbench(model: Model) -> Body:
    """Features are the largest of each channel over the image; sides of 16 px and more."""
    widths = [max(8, round(width * model.width)) for width in _WIDTHS]
    whitening = nn.Conv2d(3, _NUM_WHITENED, _PATCH)
    whitening.weight.requires_grad_(False)
    layers: list[nn.Module] = [whitening, nn.GELU()]
    for num_in, num_out in zip((_NUM_WHITENED, *widths[:-1]), widths, strict=True):
        layers.append(_pair(num_in, num_out))
    return _Whitened(nn.Sequential(*layers, _Largest()), widths[-1])


class _Largest(nn.Module):
    """The largest of each channel. torch's adaptive pooling has no deterministic way back on a GPU, and that of `amax`,
    compiled in bf16, compares unrounded features with the rounded largest: none is equal, and gradients are NaN.
    """

    def forward(self, features: Tensor) -> Tensor:
        return features.flatten(2).max(2).values


class _Whitened(Body):
    def initialize(self, images: Iterable[Tensor]) -> None:
        """Set the first layer to the whitening of the images' patches (their covariance's eigenvectors, scaled)."""
        size = _NUM_WHITENED // 2
        whitening = self.layers[0]  # type: ignore[index]
        products = torch.zeros((size, size), dtype=torch.float64, device=whitening.weight.device)
        num_patches = 0
        for part in images:
            patches = part.unfold(2, _PATCH, 1).unfold(3, _PATCH, 1).transpose(1, 3).reshape(-1, size)
            patches = patches.double()  # in float32 a GPU would multiply with 10 bits
            products += patches.T @ patches
            num_patches += len(patches)
        variances, vectors = (found.float() for found in torch.linalg.eigh(products / num_patches))
        filters = vectors.T.reshape(-1, 3, _PATCH, _PATCH) / (variances + _EPSILON).sqrt().view(-1, 1, 1, 1)
        with torch.no_grad():
            whitening.weight.copy_(torch.cat([filters, -filters]))


def _pair(num_in: int, num_out: int) -> nn.Sequential:
    return nn.Sequential(
        _convolution(num_in, num_out),
        nn.MaxPool2d(2),
        _norm(num_out),
        nn.GELU(),
        _convolution(num_out, num_out),
        _norm(num_out),
        nn.GELU(),
    )


def _convolution(num_in: int, num_out: int) -> nn.Conv2d:
    """Begins by passing its input on in the first channels."""
    layer = nn.Conv2d(num_in, num_out, 3, padding=1, bias=False)
    nn.init.dirac_(layer.weight.data[:num_in])
    return layer


def _norm(channels: int) -> nn.BatchNorm2d:
    layer = nn.BatchNorm2d(channels, eps=1e-12, momentum=0.4)
    layer.weight.requires_grad_(False)
    return layer
