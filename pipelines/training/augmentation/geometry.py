"""Crop or shift, mirror, erase: whole batches of uint8 pixels on any device, as drawn."""

from __future__ import annotations

import torch
from torch import Tensor

from pipelines.core.recipe import Augmentation
from pipelines.training.augmentation.draws import Draws
from pipelines.training.augmentation.resampling import pixel_boxes, resample, scale

GREY = (124, 116, 104)
"""What erasing fills in: ImageNet's mean colour, which the networks' normalization maps to zero."""

_FULL_SIZE_FROM = 2 / 3  # share of the epochs
_SIDE_MULTIPLE, _SMALL_SIDE_MULTIPLE, _SMALL_BELOW_PX = 16, 8, 64


def side_at(epoch: int, num_epochs: int, full: int, augmentation: Augmentation) -> int:
    """Side of training images in an epoch (from 0), px: it grows linearly from start_size to `full` at two thirds
    of the epochs, in steps of 16 px (8 where the full side is below 64).
    """
    progress = min(1.0, epoch / (_FULL_SIZE_FROM * num_epochs))
    share = augmentation.start_size + (1 - augmentation.start_size) * progress
    if share >= 1:
        return full
    multiple = _SIDE_MULTIPLE if full >= _SMALL_BELOW_PX else _SMALL_SIDE_MULTIPLE
    return min(full, multiple * max(1, int(full * share / multiple + 0.5)))


def size_at(epoch: int, num_epochs: int, height: int, width: int, augmentation: Augmentation) -> tuple[int, int]:
    """Height and width of training images in an epoch, px: the shorter by `side_at`, the other by the same factor, so
    that objects keep their shape.
    """
    shorter = min(height, width)
    factor = side_at(epoch, num_epochs, shorter, augmentation) / shorter
    return round(height * factor), round(width * factor)


def transform(pixels: Tensor, draws: Draws, augmentation: Augmentation, height: int, width: int) -> Tensor:
    """uint8 [N, H, W, 3] to a new uint8 [N, height, width, 3] on the same device: cropped or shifted, mirrored, erased.

    A shift moves images of the wanted size; stored ones of another size are scaled to it first.
    """
    if augmentation.crop == "resized":
        boxes_px = pixel_boxes(draws.boxes, *pixels.shape[1:3])
        return erase(resample(pixels, boxes_px, draws.mirrored, height, width), draws.erased)
    if pixels.shape[1:3] != (height, width):
        pixels = scale(pixels, height, width)
    return erase(_shifted(pixels, draws, augmentation), draws.erased)


def erase(pixels: Tensor, erased: Tensor) -> Tensor:
    """The images with the rectangle of each filled with GREY; may change `pixels`. `erased` as in `Draws`."""
    chosen = (erased[:, 2] > 0).nonzero()[:, 0].tolist()
    if not chosen:
        return pixels
    if pixels.device.type != "cpu":
        return erase_by_mask(pixels, erased)
    boxes_px = pixel_boxes(erased, *pixels.shape[1:3]).tolist()
    grey = torch.tensor(GREY, dtype=torch.uint8)
    for image in chosen:
        top, left, rows, columns = boxes_px[image]
        pixels[image, top : top + rows, left : left + columns] = grey
    return pixels


def erase_by_mask(pixels: Tensor, erased: Tensor) -> Tensor:
    """The same in one pass over all pixels, where a GPU would otherwise start a kernel for each rectangle."""
    boxes_px = torch.where(erased[:, 2:3] > 0, pixel_boxes(erased, *pixels.shape[1:3]), 0)
    grey = torch.tensor(GREY, dtype=torch.uint8).to(pixels.device, non_blocking=True)
    return torch.where(_inside(boxes_px.to(pixels.device, non_blocking=True), *pixels.shape[1:3]), grey, pixels)


def _inside(boxes_px: Tensor, height: int, width: int) -> Tensor:
    """bool [N, height, width, 1]"""
    top, left, rows, columns = boxes_px[:, :, None].unbind(dim=1)
    down, right = (torch.arange(side, device=boxes_px.device) for side in (height, width))
    in_rows = (down >= top) & (down < top + rows)
    in_columns = (right >= left) & (right < left + columns)
    return (in_rows[:, :, None] & in_columns[:, None, :])[..., None]


def _shifted(pixels: Tensor, draws: Draws, augmentation: Augmentation) -> Tensor:
    """Rows, then columns of each image looked up by index, mirrored on the way."""
    num_images, height, width, channels = pixels.shape
    device = pixels.device
    down = pixel_shifts(draws.offsets[:, 0], height, augmentation.shift_share).to(device, non_blocking=True)
    right = pixel_shifts(draws.offsets[:, 1], width, augmentation.shift_share).to(device, non_blocking=True)
    mirrored = draws.mirrored.to(device, non_blocking=True)

    rows = _sources(down, height, augmentation.border)
    rows = rows + torch.arange(num_images, device=device)[:, None] * height
    columns = _sources(right, width, augmentation.border)
    columns = torch.where(mirrored[:, None], columns.flip(1), columns)
    values = columns[:, :, None] * channels + torch.arange(channels, device=device)
    values = values.view(num_images, 1, width * channels).expand(-1, height, -1)

    lines = pixels.reshape(num_images * height, width * channels).index_select(0, rows.flatten())
    return lines.view(num_images, height, width * channels).gather(2, values).view(pixels.shape)


def pixel_shifts(offsets: Tensor, side: int, share: float) -> Tensor:
    """int64 [N], uniform in -k..k for offsets uniform in [0, 1), with k the share of the side in whole pixels."""
    limit = round(side * share)
    return (offsets * (2 * limit + 1)).long().clamp(max=2 * limit) - limit


def _sources(shifts: Tensor, side: int, border: str) -> Tensor:
    """Which of `side` pixels of a line each place shows after a shift, int64 [N, side]."""
    places = torch.arange(side, device=shifts.device) - shifts[:, None]
    if border == "reflect":
        places = places.abs()
        return (side - 1) - (side - 1 - places).abs()
    return places.clamp(0, side - 1)
