"""What is done to pixels, on images small enough to write down; and both ways of resampling against each other."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from pipelines.core.recipe import Augmentation, Preprocessing
from pipelines.training.augmentation.draws import Draws, draw
from pipelines.training.augmentation.geometry import (
    GREY,
    erase,
    erase_by_mask,
    pixel_shifts,
    side_at,
    size_at,
    transform,
)
from pipelines.training.augmentation.resampling import by_products, pixel_boxes, resample, scale
from pipelines.training.randomness import generator

WHOLE = [0.0, 0.0, 1.0, 1.0]


def _image(values: list[list[int]]) -> Tensor:
    """uint8 [1, H, W, 3], the three channels told apart by a constant."""
    return torch.stack([torch.tensor(values) + 50 * channel for channel in range(3)], dim=-1).to(torch.uint8)[None]


def _draws(num_images: int = 1, **changes: Any) -> Draws:
    """Draws that change nothing but what is given, the same for all images."""
    fields = {"boxes": WHOLE, "offsets": [0.5, 0.5], "mirrored": False, "erased": [0.0] * 4, **changes}
    rows = {name: torch.as_tensor(value) for name, value in fields.items()}
    return Draws(**{name: row.expand(num_images, *row.shape).clone() for name, row in rows.items()})


def _shifted(down: int, right: int, share: float, border: str, mirrored: bool = False) -> list[list[int]]:
    """The first channel of a 4 x 4 image after a shift."""
    image = _image([[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12], [13, 14, 15, 16]])
    limit = round(4 * share)
    offsets = [(move + limit + 0.5) / (2 * limit + 1) for move in (down, right)]
    augmentation = Augmentation(crop="shift", shift_share=share, border=border)
    moved = transform(image, _draws(offsets=offsets, mirrored=mirrored), augmentation, 4, 4)
    assert torch.equal(moved[..., 1], moved[..., 0] + 50)
    assert torch.equal(moved[..., 2], moved[..., 0] + 100)
    return moved[0, :, :, 0].tolist()


def test_a_shift_repeats_the_edge() -> None:
    assert _shifted(1, 0, 0.25, "edge") == [[1, 2, 3, 4], [1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12]]
    assert _shifted(0, -2, 0.5, "edge") == [[3, 4, 4, 4], [7, 8, 8, 8], [11, 12, 12, 12], [15, 16, 16, 16]]
    assert _shifted(0, 0, 0.0, "edge") == [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12], [13, 14, 15, 16]]


def test_a_shift_reflects_the_border_without_doubling_it() -> None:
    assert _shifted(2, 0, 0.5, "reflect") == [[9, 10, 11, 12], [5, 6, 7, 8], [1, 2, 3, 4], [5, 6, 7, 8]]
    assert _shifted(0, -1, 0.25, "reflect") == [[2, 3, 4, 3], [6, 7, 8, 7], [10, 11, 12, 11], [14, 15, 16, 15]]


def test_mirroring_turns_the_shifted_image() -> None:
    assert _shifted(0, 0, 0.25, "edge", mirrored=True)[0] == [4, 3, 2, 1]
    assert _shifted(0, 1, 0.25, "edge", mirrored=True)[0] == [3, 2, 1, 1]


def test_shifts_are_whole_pixels_each_as_likely() -> None:
    shifts = pixel_shifts((torch.arange(700) + 0.5) / 700, 32, 0.1)
    assert torch.equal(shifts.unique(return_counts=True)[0], torch.arange(-3, 4))
    assert shifts.unique(return_counts=True)[1].tolist() == [100] * 7
    nearly_one = torch.tensor([1 - 2**-24])
    assert pixel_shifts(nearly_one, 1000, 0.5).tolist() == [500]


def test_images_of_another_size_are_scaled_before_they_shift() -> None:
    image = _image([[0, 35], [70, 105]]).repeat_interleave(2, dim=1).repeat_interleave(2, dim=2)
    smaller = transform(image, _draws(), Augmentation(shift_share=0.0), 2, 2)
    # Antialiased: the triangle of 2 px reaches one pixel into the neighbouring block, with a seventh of the weight.
    assert smaller[0, :, :, 0].tolist() == [[15, 40], [65, 90]]
    assert torch.equal(smaller, scale(image, 2, 2))


def test_a_crop_of_a_quarter_at_its_own_size_is_that_quarter() -> None:
    pixels = torch.arange(2 * 8 * 8 * 3).to(torch.uint8).view(2, 8, 8, 3)
    augmentation = Augmentation(crop="resized")
    quarter = transform(pixels, _draws(2, boxes=[0.5, 0.25, 0.5, 0.5]), augmentation, 4, 4)
    assert torch.equal(quarter, pixels[:, 4:8, 2:6])
    turned = transform(pixels, _draws(2, boxes=[0.5, 0.25, 0.5, 0.5], mirrored=True), augmentation, 4, 4)
    assert torch.equal(turned, pixels[:, 4:8, 2:6].flip(2))
    boxes_px = torch.tensor([[4, 2, 4, 4]] * 2)
    by_product = by_products(pixels, boxes_px, torch.tensor([True, True]), 4, 4, torch.float32)
    assert torch.equal(by_product, turned)


def test_boxes_are_rounded_to_pixels_within_the_image() -> None:
    boxes = torch.tensor([WHOLE, [0.99, 0.99, 0.001, 0.001], [0.24, 0.26, 0.5, 0.76], [0.95, 0.0, 0.1, 1.0]])
    assert pixel_boxes(boxes, 10, 20).tolist() == [[0, 0, 10, 20], [9, 19, 1, 1], [2, 5, 5, 15], [9, 0, 1, 20]]


def test_erasing_fills_the_rectangle_with_the_mean_colour() -> None:
    pixels = torch.zeros(2, 4, 4, 3, dtype=torch.uint8)
    erased = torch.tensor([[0.25, 0.5, 0.5, 0.5], [0.0] * 4])
    expected = pixels.clone()
    expected[0, 1:3, 2:4] = torch.tensor(GREY, dtype=torch.uint8)
    assert torch.equal(erase_by_mask(pixels, erased), expected)
    assert torch.equal(erase(pixels, erased), expected)


def test_transform_erases_whatever_the_crop_and_leaves_the_stored_pixels_alone() -> None:
    pixels = torch.zeros(1, 8, 8, 3, dtype=torch.uint8)
    for crop in ("shift", "resized"):
        changed = transform(pixels, _draws(erased=[0.0, 0.0, 0.5, 0.5]), Augmentation(crop=crop), 8, 8)
        assert int((changed != 0).any(dim=-1).sum()) == 16
        assert not pixels.any()


def _photographs(num_images: int, height: int, width: int) -> Tensor:
    """Smooth and noisy parts, as in photographs, with all of 0..255."""
    smooth = torch.rand(num_images, 3, 5, 5, generator=generator(1)) * 400 - 70
    smooth = torch.nn.functional.interpolate(smooth, (height, width), mode="bicubic")
    smooth[:, :, :, : width // 2] += 60 * torch.randn(num_images, 3, height, width // 2, generator=generator(2))
    return smooth.clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


@pytest.mark.parametrize(("height", "width"), [(24, 24), (40, 56), (64, 32)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_products_give_what_one_by_one_gives(height: int, width: int, dtype: torch.dtype) -> None:
    """What a GPU computes, here on the CPU; the integer kernel rounds between rows and columns: by one level."""
    pixels = _photographs(32, 60, 48)
    sizes = torch.tensor([60, 48], dtype=torch.int32).expand(32, 2)
    augmentation = Augmentation(crop="resized", min_area=0.05, flip="random")
    draws = draw(torch.arange(32), sizes, 0, augmentation, Preprocessing(), generator(0), 0)
    boxes_px = pixel_boxes(draws.boxes, 60, 48)
    one_by_one = resample(pixels, boxes_px, draws.mirrored, height, width)
    by_product = by_products(pixels, boxes_px, draws.mirrored, height, width, dtype)
    assert by_product.shape == (32, height, width, 3)
    difference = (one_by_one.int() - by_product.int()).abs()
    assert int(difference.max()) <= 1
    assert float(difference.float().mean()) < 0.3


def test_parts_of_a_batch_come_out_as_in_the_whole() -> None:
    pixels, sizes = _photographs(12, 32, 32), torch.full((12, 2), 32, dtype=torch.int32)
    for crop in ("shift", "resized"):
        augmentation = Augmentation(crop=crop, erasing=0.5, border="reflect")
        draws = draw(torch.arange(12), sizes, 0, augmentation, Preprocessing(), generator(0), 0)
        whole = transform(pixels, draws, augmentation, 24, 24)
        parts = [transform(pixels[part], draws.part(part), augmentation, 24, 24) for part in (slice(5), slice(5, 12))]
        assert torch.equal(torch.cat(parts), whole)


def test_the_side_grows_to_full_at_two_thirds_of_the_epochs() -> None:
    half = Augmentation(start_size=0.5)
    assert [side_at(epoch, 12, 224, half) for epoch in (0, 2, 4, 6, 7, 8, 11)] == [112, 144, 176, 192, 208, 224, 224]
    assert [side_at(epoch, 6, 32, half) for epoch in range(6)] == [16, 24, 24, 32, 32, 32]
    assert [side_at(epoch, 5, 100, half) for epoch in range(5)] == [48, 64, 80, 96, 100]
    assert side_at(0, 1, 8, dataclasses.replace(half, start_size=0.25)) == 8
    assert {side_at(epoch, 4, 50, Augmentation()) for epoch in range(4)} == {50}


def test_both_sides_grow_by_one_factor() -> None:
    half = Augmentation(start_size=0.5)
    assert [size_at(epoch, 12, 224, 448, half) for epoch in (0, 2, 8)] == [(112, 224), (144, 288), (224, 448)]
    assert size_at(0, 6, 32, 40, half) == (16, 20)
    assert size_at(0, 6, 40, 32, half) == (20, 16)
