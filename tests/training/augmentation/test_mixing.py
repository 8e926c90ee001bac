"""Mixup and cutmix: pixels to the level, and a loss in which every class weighs as much as its image."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from pipelines.core.recipe import Augmentation
from pipelines.training.augmentation.mixing import blended, mix, pasted
from pipelines.training.batch import Batch
from pipelines.training.loading import order
from pipelines.training.randomness import generator


def _batch(num_images: int = 8, side: int = 8) -> Batch:
    """Image n is all n * 16, of class n."""
    numbers = torch.arange(num_images)
    pixels = (numbers * 16).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, side, side, 3).contiguous()
    weights = torch.linspace(0.5, 1.5, num_images)
    return Batch(pixels=pixels, labels=numbers, weights=weights, num_global=num_images)


def _part(batch: Batch, place: slice) -> Batch:
    fields = {name: getattr(batch, name)[place] for name in ("pixels", "labels", "weights")}
    return dataclasses.replace(batch, **fields)


def test_without_mixing_the_batch_is_itself() -> None:
    batch = _batch()
    assert mix(batch, Augmentation(), generator(0)) is batch


def test_blending_rounds_to_the_nearest_level() -> None:
    own, others = torch.meshgrid(torch.arange(256), torch.arange(256), indexing="ij")
    for asked, share in ((0.0, 0.0), (0.25, 0.25), (0.3, 38 / 128), (1.0, 1.0)):
        mixed, true_share = blended(own.to(torch.uint8), others.to(torch.uint8), asked)
        assert true_share == share
        assert mixed.dtype == torch.uint8
        assert float((mixed - (own * (1 - share) + others * share)).abs().max()) <= 0.5
    known, _ = blended(torch.tensor([100, 200, 0], dtype=torch.uint8), torch.tensor([200, 100, 255]).byte(), 0.25)
    assert known.tolist() == [125, 175, 64]


def test_mixup_blends_pixels_and_classes_by_the_same_share() -> None:
    batch = _batch()
    mixed = mix(batch, Augmentation(mixup=1.0), generator(3))
    assert mixed.other_labels is not None
    assert mixed.other_share is not None
    share = (mixed.other_share * mixed.weights / batch.weights[mixed.other_labels])[0]
    assert 0 < share < 1
    expected = batch.labels * 16 * (1 - share) + mixed.other_labels * 16 * share
    assert float((mixed.pixels[:, 0, 0, 0] - expected).abs().max()) <= 0.501
    assert bool((mixed.pixels == mixed.pixels[:, :1, :1]).all())
    assert torch.equal(mixed.labels, batch.labels)
    assert mixed.other_labels.sort().values.tolist() == batch.labels.tolist()
    assert torch.equal(batch.pixels, _batch().pixels)


@pytest.mark.parametrize("num_images", [2, 3, 8, 9])
def test_everyone_is_mixed_with_another_and_nobody_twice(num_images: int) -> None:
    mixed = mix(_batch(num_images), Augmentation(mixup=1.0), generator(3))
    assert mixed.other_labels is not None
    assert (mixed.other_labels != mixed.labels).all()
    assert mixed.other_labels.sort().values.tolist() == list(range(num_images))


def test_one_image_alone_stays_as_it_is() -> None:
    batch = _batch(1)
    assert mix(batch, Augmentation(mixup=1.0), generator(3)) is batch


@pytest.mark.parametrize("augmentation", [Augmentation(mixup=1.0), Augmentation(cutmix=1.0)])
@pytest.mark.parametrize(("num_images", "num_processes"), [(16, 2), (14, 4), (15, 4), (7, 3)])
def test_processes_mix_what_one_would(augmentation: Augmentation, num_images: int, num_processes: int) -> None:
    whole = _batch(num_images)
    alone = mix(whole, augmentation, generator(3))
    places = [order.part_of_pairs(num_images, num_processes, index) for index in range(num_processes)]
    parts = [mix(_part(whole, place), augmentation, generator(3)) for place in places]
    for field in ("pixels", "labels", "weights", "other_labels", "other_share"):
        assert torch.equal(torch.cat([getattr(part, field) for part in parts]), getattr(alone, field)), field


def test_each_class_weighs_as_much_as_its_image() -> None:
    batch = _batch()
    for augmentation in (Augmentation(mixup=1.0), Augmentation(cutmix=1.0)):
        mixed = mix(batch, augmentation, generator(5))
        assert mixed.other_labels is not None
        assert mixed.other_share is not None
        per_class = torch.zeros(8)
        per_class.index_add_(0, mixed.labels, mixed.weights * (1 - mixed.other_share))
        per_class.index_add_(0, mixed.other_labels, mixed.weights * mixed.other_share)
        assert torch.allclose(per_class, batch.weights)


def test_images_of_no_weight_stay_without_one() -> None:
    batch = _batch()
    batch.weights.zero_()
    mixed = mix(batch, Augmentation(mixup=1.0), generator(0))
    assert mixed.other_share is not None
    assert mixed.weights.tolist() == mixed.other_share.tolist() == [0.0] * 8


def test_cutmix_pastes_a_rectangle_and_counts_its_true_area() -> None:
    pixels, partners = _batch(2).pixels, torch.tensor([1, 0])
    mixed, share = pasted(pixels, partners, 0.25, (0.5, 0.5))
    assert share == 16 / 64
    assert mixed[0, 2:6, 2:6].eq(16).all()
    assert int(mixed[0, :, :, 0].eq(16).sum()) == 16
    assert int(mixed[1, :, :, 0].eq(0).sum()) == 16
    mixed, share = pasted(pixels, partners, 0.25, (0.0, 0.99))
    assert share == 2 * 3 / 64  # rows -2..2 and columns 5..9 cut off at the border
    assert mixed[0, :2, 5:].eq(16).all()
    assert int(mixed[0, :, :, 0].eq(16).sum()) == 6


def test_with_both_on_each_takes_some_batches() -> None:
    batch, both = _batch(), Augmentation(mixup=1.0, cutmix=1.0)
    mixed = [mix(batch, both, generator(0, step)).pixels for step in range(20)]
    uniform = [bool((pixels == pixels[:, :1, :1]).all()) for pixels in mixed]
    assert 4 <= sum(uniform) <= 16


def test_the_same_generator_mixes_alike() -> None:
    both = Augmentation(mixup=0.2, cutmix=1.0)
    one, other = (mix(_batch(), both, generator(7)) for _ in range(2))
    assert torch.equal(one.pixels, other.pixels)
    assert one.other_share is not None
    assert other.other_share is not None
    assert torch.equal(one.other_share, other.other_share)
