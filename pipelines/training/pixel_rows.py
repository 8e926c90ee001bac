"""Pixels to the numbers that a network takes, so that an exported graph does it by rows of an image.

Three constants that are repeated for each pixel take ONNX Runtime 0.6 ms an operation at 224 px where a graph runs in
NHWC, as int8 graphs do: in all a quarter of MobileNetV2. A row [W, 3] of them takes 0.03 ms and gives the same bits.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Each = Callable[[Tensor], Tensor]
"""A number for each channel, [3] with or without ones around it, in the shape that goes with the pixels."""


def by_rows(pixels_NHWC: Tensor, arithmetic: Callable[[Tensor, Each], Tensor]) -> Tensor:  # noqa: N803
    """uint8 [N, H, W, 3] to float32 [N, 3, H, W] in channels_last, by elementwise `arithmetic` on them as floats."""
    if torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
        width = int(pixels_NHWC.shape[2])  # a number in the graph
        return arithmetic(pixels_NHWC.float(), lambda one: one.flatten().repeat(width, 1)).permute(0, 3, 1, 2)
    # In torch it makes no difference, and torch.compile does not manage a row of varying width. Moving axes, not
    # bytes: NHWC memory seen as NCHW is torch's channels_last.
    return arithmetic(pixels_NHWC.permute(0, 3, 1, 2).float(), lambda one: one.reshape(1, 3, 1, 1))


def standardized(pixels_NHWC: Tensor, mean: Tensor, std: Tensor) -> Tensor:  # noqa: N803
    """Float [N, 3, H, W], to the last bit what torchvision's ToTensor and Normalize make; mean and std are of 0..1."""
    return by_rows(pixels_NHWC, lambda values, each: (values / 255 - each(mean)) / each(std))
