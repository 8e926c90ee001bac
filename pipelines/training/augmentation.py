"""Random changes of whole batches of uint8 pixels, before anything is a float."""

from __future__ import annotations

import torch
from torch import Tensor

from pipelines.core.recipe import Training


def augment(pixels_NHWC: Tensor, training: Training, generator: torch.Generator) -> Tensor:  # noqa: N803
    """uint8 [N, H, W, 3] of the same shape, each image mirrored and shifted at random.

    A shift repeats the edge. Both are one gather: rows and columns of every image are looked up by index. Random
    numbers come from `generator` (CPU), so that they are the same on every device.
    """
    num_images, height, width, _ = pixels_NHWC.shape
    rows = _shifted(num_images, height, training.shift_share, generator)
    columns = _shifted(num_images, width, training.shift_share, generator)
    if training.flip:
        mirrored = torch.rand(num_images, 1, generator=generator) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
    device = pixels_NHWC.device
    images = torch.arange(num_images, device=device)
    return pixels_NHWC[images[:, None, None], rows.to(device)[:, :, None], columns.to(device)[:, None, :]]


def _shifted(num_images: int, side: int, share: float, generator: torch.Generator) -> Tensor:
    """Source indices int64 [N, side] of images shifted by up to `share` of the side either way."""
    limit = round(side * share)
    offsets = torch.randint(-limit, limit + 1, (num_images, 1), generator=generator)
    return (torch.arange(side) + offsets).clamp(0, side - 1)
