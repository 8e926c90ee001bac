"""The perceptual hash is blind to small changes, and its neighbours are found without comparing all with all."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from pipelines.core import perceptual
from pipelines.core.perceptual import neighbours, phash


def test_hash_of_known_images_never_changes() -> None:
    """Stored hashes are compared with new ones, so these are part of the data format."""
    gradient = np.asarray(Image.linear_gradient("L").resize((32, 32), Image.Resampling.BOX))
    flat = np.full((32, 32), 128, np.uint8)
    assert [f"{int(one):016x}" for one in phash(np.stack([flat, gradient]))] == ["8000000000000000", GRADIENT]


GRADIENT = "8000000000000000"


def test_hash_does_not_depend_on_the_batch() -> None:
    images = np.random.default_rng(0).integers(0, 256, (9, 32, 32), dtype=np.uint8)
    alone = np.concatenate([phash(image[None]) for image in images])
    assert (phash(images) == alone).all()


def test_small_changes_stay_near_and_other_images_are_far() -> None:
    rng = np.random.default_rng(1)
    smooth = np.stack(
        [np.asarray(Image.fromarray(rng.integers(0, 256, (6, 6), dtype=np.uint8)).resize((32, 32))) for _ in range(40)]
    )
    brighter = np.clip(smooth.astype(int) + 6, 0, 255).astype(np.uint8)
    hashes = phash(smooth)
    assert np.bitwise_count(hashes ^ phash(brighter)).max() <= 4
    others = np.bitwise_count(hashes[:, None] ^ hashes[None, :])[~np.eye(40, dtype=bool)]
    assert others.min() > 8


@pytest.mark.parametrize("distance", [0, 1, 4, 7, 12])
@pytest.mark.parametrize("block", [64, 1 << 22])
def test_finds_every_pair_and_no_other(distance: int, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(perceptual, "_BLOCK", block)
    rng = np.random.default_rng(distance)
    base = rng.integers(0, 2**64, 150, dtype=np.uint64)
    flips = np.zeros(150, np.uint64)
    for _ in range(distance + 1):
        flips ^= np.uint64(1) << rng.integers(0, 64, 150, dtype=np.uint64)
    hashes = np.unique(np.concatenate([base, base ^ flips]))
    found = neighbours(hashes, distance, np.ones(len(hashes), np.int64), largest=1000)
    close = np.bitwise_count(hashes[:, None] ^ hashes[None, :]) <= distance
    expected = np.argwhere(np.triu(close, 1))
    assert found.pairs.tolist() == expected.tolist()
    assert not found.too_large


def test_groups_are_chains_of_pairs() -> None:
    hashes = np.array([0b0, 0b1111, 0b11111111, 0xFFFFF << 40], np.uint64)
    found = neighbours(hashes, 4, np.ones(4, np.int64), largest=10)
    assert found.pairs.tolist() == [[0, 1], [1, 2]]
    assert found.groups.tolist() == [0, 0, 0, 3]


def test_a_group_that_outgrows_its_limit_ends_the_search() -> None:
    hashes = np.arange(16, dtype=np.uint64)
    assert neighbours(hashes, 4, np.ones(16, np.int64), largest=15).too_large
    assert not neighbours(hashes, 4, np.ones(16, np.int64), largest=16).too_large
    assert neighbours(hashes[:1], 4, np.array([99]), largest=16).too_large


def test_no_hashes() -> None:
    assert len(neighbours(np.empty(0, np.uint64), 4, np.empty(0, np.int64), largest=10).pairs) == 0
