"""Draws: the same for the same place in the training, whoever draws them, and within what the recipe allows."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from pipelines.core.recipe import Augmentation, Preprocessing
from pipelines.training.augmentation.draws import Draws, draw
from pipelines.training.randomness import generator

SQUARE = Preprocessing()
ALL = Augmentation(crop="resized", min_area=0.1, flip="random", erasing=0.5)


def _drawn(augmentation: Augmentation, num_images: int = 64, epoch: int = 0, step: int = 0, seed: int = 0) -> Draws:
    rows = torch.arange(num_images)
    sizes = torch.full((num_images, 2), 32, dtype=torch.int32)
    return draw(rows, sizes, epoch, augmentation, SQUARE, generator(seed, "draws", epoch, step), seed)


def _equal(some: Draws, others: Draws) -> bool:
    names = [field.name for field in dataclasses.fields(Draws)]
    return all(torch.equal(getattr(some, name), getattr(others, name)) for name in names)


@pytest.mark.parametrize("augmentation", [ALL, Augmentation(erasing=0.5)])
def test_a_place_in_the_training_always_gives_the_same_draws(augmentation: Augmentation) -> None:
    assert _equal(_drawn(augmentation, step=3), _drawn(augmentation, step=3))
    assert not _equal(_drawn(augmentation, step=3), _drawn(augmentation, step=4))


@pytest.mark.parametrize("augmentation", [ALL, Augmentation(erasing=0.5)])
def test_the_parts_of_all_processes_make_up_the_global_batch(augmentation: Augmentation) -> None:
    whole = _drawn(augmentation)
    parts = [whole.part(slice(first, first + 24)) for first in (0, 24, 48)]
    assert [len(part) for part in parts] == [24, 24, 16]
    for field in dataclasses.fields(Draws):
        assert torch.equal(torch.cat([getattr(part, field.name) for part in parts]), getattr(whole, field.name))


def test_crops_lie_within_the_image_and_have_the_areas_and_aspects_asked_for() -> None:
    sizes = torch.tensor([[300, 400], [400, 300], [64, 64]], dtype=torch.int32).repeat(1000, 1)
    draws = draw(torch.arange(3000), sizes, 0, Augmentation(crop="resized", min_area=0.25), SQUARE, generator(0), 0)
    corners, sides = draws.boxes[:, :2], draws.boxes[:, 2:]
    assert draws.boxes.dtype == torch.float32
    assert bool((corners >= 0).all())
    assert bool((corners + sides <= 1 + 1e-6).all())
    areas = sides.prod(dim=1)
    aspects = (sides[:, 1] * sizes[:, 1]) / (sides[:, 0] * sizes[:, 0])
    assert bool((areas >= 0.25 - 1e-4).all())
    assert bool(((aspects > 3 / 4 - 1e-4) & (aspects < 4 / 3 + 1e-4)).all())
    assert areas.min() < 0.3
    assert areas.max() > 0.9
    assert aspects.log().mean().abs() < 0.02  # as often upright as lying


def test_an_image_too_narrow_for_any_crop_gives_its_largest_centred_one() -> None:
    sizes = torch.tensor([[100, 1000], [1000, 100]], dtype=torch.int32)
    draws = draw(torch.arange(2), sizes, 0, Augmentation(crop="resized", min_area=0.9), SQUARE, generator(0), 0)
    across = 4 / 3 * 100 / 1000  # 133 of 1000 columns, all 100 rows
    assert torch.allclose(draws.boxes[0], torch.tensor([0.0, (1 - across) / 2, 1.0, across]))
    assert torch.allclose(draws.boxes[1], torch.tensor([(1 - across) / 2, 0.0, across, 1.0]))


@pytest.mark.parametrize(
    ("height", "width", "size"),
    [(32, 128, (300, 300)), (128, 32, (300, 300)), (32, 128, (100, 400)), (128, 32, (400, 100))],
)
def test_crops_have_the_aspect_of_the_model_s_input(height: int, width: int, size: tuple[int, int]) -> None:
    sizes = torch.tensor([size], dtype=torch.int32).repeat(1000, 1)
    target = Preprocessing(height=height, width=width)
    boxes = draw(
        torch.arange(1000), sizes, 0, Augmentation(crop="resized", min_area=0.25), target, generator(0), 0
    ).boxes
    assert bool((boxes[:, :2] >= 0).all())
    assert bool((boxes[:, :2] + boxes[:, 2:] <= 1 + 1e-6).all())
    aspects = (boxes[:, 3] * size[1]) / (boxes[:, 2] * size[0]) / (width / height)
    assert bool(((aspects > 3 / 4 - 1e-4) & (aspects < 4 / 3 + 1e-4)).all())
    assert aspects.log().mean().abs() < 0.05
    assert len(boxes.unique(dim=0)) > 900  # and not the largest centred box again and again


def test_crops_keep_the_image_s_own_aspect_where_evaluation_squashes() -> None:
    sizes = torch.tensor([[100, 1000]], dtype=torch.int32).repeat(1000, 1)
    squashed = Preprocessing(height=32, width=32, fit="squash")
    boxes = draw(
        torch.arange(1000), sizes, 0, Augmentation(crop="resized", min_area=0.25), squashed, generator(0), 0
    ).boxes
    stretches = boxes[:, 3] / boxes[:, 2]
    assert bool(((stretches > 3 / 4 - 1e-4) & (stretches < 4 / 3 + 1e-4)).all())
    assert boxes[:, 3].max() > 0.95  # up to the whole image, as evaluation shows it


def test_a_shift_takes_the_whole_image() -> None:
    draws = _drawn(Augmentation(crop="shift"))
    assert torch.equal(draws.boxes, torch.tensor([0.0, 0.0, 1.0, 1.0]).expand(64, 4))
    assert bool(((draws.offsets >= 0) & (draws.offsets < 1)).all())


def test_alternating_flips_show_each_side_every_second_epoch() -> None:
    epochs = [_drawn(Augmentation(flip="alternating"), 2000, epoch).mirrored for epoch in range(4)]
    assert torch.equal(epochs[0], ~epochs[1])
    assert torch.equal(epochs[0], epochs[2])
    assert torch.equal(epochs[1], epochs[3])
    assert 900 < int(epochs[0].sum()) < 1100
    other_seed = _drawn(Augmentation(flip="alternating"), 2000, seed=1).mirrored
    assert 900 < int((epochs[0] ^ other_seed).sum()) < 1100


def test_a_rows_coin_depends_on_the_row_alone() -> None:
    augmentation, rows = Augmentation(flip="alternating"), torch.tensor([7, 1_000_003, 2**40, 7])
    sizes = torch.full((4, 2), 8, dtype=torch.int32)
    one = draw(rows, sizes, 0, augmentation, SQUARE, generator(0, 1), 5).mirrored
    other = draw(rows.flip(0), sizes, 0, augmentation, SQUARE, generator(0, 2), 5).mirrored
    assert torch.equal(one, other.flip(0))
    assert one[0] == one[3]


def test_random_flips_take_half_and_none_takes_none() -> None:
    assert 900 < int(_drawn(Augmentation(flip="random"), 2000).mirrored.sum()) < 1100
    assert not _drawn(Augmentation(flip="none"), 2000).mirrored.any()


def test_erasing_takes_its_share_of_images_and_rectangles_of_the_papers_area() -> None:
    erased = _drawn(Augmentation(erasing=0.25), 4000).erased
    chosen = erased[erased[:, 2] > 0]
    assert 900 < len(chosen) < 1100
    areas = chosen[:, 2:].prod(dim=1)
    assert bool((areas > 0.019).all())
    assert bool((areas < 0.331).all())
    assert bool((chosen[:, :2] + chosen[:, 2:] <= 1 + 1e-6).all())
    assert not _drawn(Augmentation(erasing=0.0)).erased.any()
