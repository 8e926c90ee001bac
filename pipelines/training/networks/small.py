"""A light residual network for images up to 64 px."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from pipelines.core.recipe import Model
from pipelines.training.networks.network import Body, Traits

TRAITS = Traits(scale_invariant=True)
_WIDTHS = (32, 64, 128)


def small(model: Model) -> Body:
    """Three halvings with a residual convolution after each, then the mean over the image.

    The first halving comes at once: at full resolution a convolution costs four times as much, and at 32 px it took
    three quarters of the time.
    """
    widths = [max(8, round(width * model.width)) for width in _WIDTHS]
    layers: list[nn.Module] = []
    for num_in, num_out in pairwise((3, *widths)):
        layers += [_convolution(num_in, num_out, kernel=4, stride=2), _Residual(num_out)]
    return Body(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()), widths[-1])


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convolution = _convolution(channels, channels)

    def forward(self, features: Tensor) -> Tensor:
        added: Tensor = features + self.convolution(features)
        return added


def _convolution(num_in: int, num_out: int, *, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(num_in, num_out, kernel, stride=stride, padding=1, bias=False), nn.BatchNorm2d(num_out), nn.ReLU()
    )
