"""Cutting boxes out of images and scaling them to one size, antialiased: one image at a time, or as matrix products."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import interpolate

_IMAGES_AT_ONCE = 256  # bounds the half-precision copies: about 0.5 GB at 280 px


def pixel_boxes(boxes: Tensor, height: int, width: int) -> Tensor:
    """Boxes [N, 4] (top, left, height, width as shares) in whole pixels, int64: sides, then corners, rounded to the
    nearest pixel, at least one pixel and within the image. Both ways of resampling cut at the same pixels thus.
    """
    limits = torch.tensor([height, width])
    sides = (boxes[:, 2:] * limits).round().long().clamp(min=1).minimum(limits)
    corners = (boxes[:, :2] * limits).round().long().clamp(min=0).minimum(limits - sides)
    return torch.cat([corners, sides], dim=1)


def resample(pixels: Tensor, boxes_px: Tensor, mirrored: Tensor, height: int, width: int) -> Tensor:
    """uint8 [N, H, W, 3] to uint8 [N, height, width, 3]: the box of each image, mirrored where asked.

    `boxes_px` int64 [N, 4] and `mirrored` bool [N] are on the CPU. Bilinear with the filter widened by the reduction,
    as Pillow's and torchvision's antialiased resize. A CPU and a GPU differ by one level at most.
    """
    if pixels.device.type == "cpu":
        return _one_by_one(pixels, boxes_px, mirrored, height, width)
    boxes_px = boxes_px.to(pixels.device, non_blocking=True)
    mirrored = mirrored.to(pixels.device, non_blocking=True)
    out = pixels.new_empty(len(pixels), height, width, 3)
    for first in range(0, len(pixels), _IMAGES_AT_ONCE):
        some = slice(first, first + _IMAGES_AT_ONCE)
        out[some] = by_products(pixels[some], boxes_px[some], mirrored[some], height, width, torch.float16)
    return out


def scale(pixels: Tensor, height: int, width: int) -> Tensor:
    """The same of whole images, all in one call."""
    if pixels.device.type == "cpu":
        scaled = interpolate(pixels.permute(0, 3, 1, 2), (height, width), mode="bilinear", antialias=True)
        return scaled.permute(0, 2, 3, 1).contiguous()
    whole = torch.tensor([0, 0, *pixels.shape[1:3]]).repeat(len(pixels), 1)
    return resample(pixels, whole, torch.zeros(len(pixels), dtype=torch.bool), height, width)


def _one_by_one(pixels: Tensor, boxes_px: Tensor, mirrored: Tensor, height: int, width: int) -> Tensor:
    """torch's integer kernel, which needs no float copy: twice as fast as batched products on a CPU."""
    out = pixels.new_empty(len(pixels), height, width, 3)
    images = pixels.permute(0, 3, 1, 2)
    places = zip(boxes_px.tolist(), mirrored.tolist(), strict=True)
    for index, ((top, left, rows, columns), mirror) in enumerate(places):
        box = images[index : index + 1, :, top : top + rows, left : left + columns]
        scaled = interpolate(box, (height, width), mode="bilinear", antialias=True)[0].permute(1, 2, 0)
        out[index] = scaled.flip(1) if mirror else scaled
    return out


def by_products(
    pixels: Tensor, boxes_px: Tensor, mirrored: Tensor, height: int, width: int, dtype: torch.dtype
) -> Tensor:
    """The same for a whole batch at once: rows, then columns, each a batched product with the filter's weights.

    All tensors on one device. float16 holds 0..255 to 1/8 or finer and suffices; bfloat16 does not.
    """
    num_images, stored_height, stored_width, channels = pixels.shape
    top, left, rows, columns = boxes_px.unbind(dim=1)
    vertical = _weights(top, rows, stored_height, height).to(dtype)
    horizontal = _weights(left, columns, stored_width, width)
    horizontal = torch.where(mirrored[:, None, None], horizontal.flip(1), horizontal).to(dtype)

    lines = torch.bmm(vertical, pixels.to(dtype).view(num_images, stored_height, stored_width * channels))
    lines = lines.view(num_images, height, stored_width, channels).transpose(2, 3)
    scaled = torch.bmm(lines.reshape(num_images, height * channels, stored_width), horizontal.transpose(1, 2))
    scaled = scaled.view(num_images, height, channels, width).transpose(2, 3)
    return scaled.round().clamp(0, 255).to(torch.uint8)


def _weights(start: Tensor, length: Tensor, stored: int, side: int) -> Tensor:
    """Triangle filters float32 [N, side, stored] over pixels start..start + length of a line; each sums to 1."""
    scale = (length / side)[:, None, None]
    outputs = torch.arange(side, device=start.device)[None, :, None]
    inputs = torch.arange(stored, device=start.device)[None, None, :]
    centres = start[:, None, None] + (outputs + 0.5) * scale
    weights = (1 - (inputs + 0.5 - centres).abs() / scale.clamp(min=1)).clamp(min=0)
    within = (inputs >= start[:, None, None]) & (inputs < (start + length)[:, None, None])
    weights = weights * within
    return weights / weights.sum(dim=2, keepdim=True)
