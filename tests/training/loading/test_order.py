"""The order of an epoch: every row once, the same after every restart, in nearly equal parts."""

from __future__ import annotations

import numpy as np
import pytest

from pipelines.training.loading import order


@pytest.mark.parametrize("num_images", [1, 7, 100, 1000])
def test_every_row_comes_once_and_epochs_differ(num_images: int) -> None:
    for shuffle in (order.shuffled, lambda *where: order.shuffled_in_blocks(*where, block=8, window=4)):
        rows = shuffle(num_images, 3, 5)
        assert rows.dtype == np.int64
        assert sorted(rows.tolist()) == list(range(num_images))
        assert (rows == shuffle(num_images, 3, 5)).all()
        if num_images > 7:
            assert (rows != shuffle(num_images, 3, 6)).any()
            assert (rows != shuffle(num_images, 4, 5)).any()


def test_blocks_keep_reading_near_and_still_mix() -> None:
    rows = order.shuffled_in_blocks(4096, 0, 0, block=16, window=8)
    for start in range(0, 4096, 16 * 8):
        window = rows[start : start + 16 * 8]
        assert len({row // 16 for row in window.tolist()}) == 8
        assert len({row // 16 for row in window[:16].tolist()}) > 4
    first = {row // 16 for row in rows[: 16 * 8].tolist()}
    assert max(first) - min(first) > 100


@pytest.mark.parametrize(
    ("num_images", "batch_size", "expected"),
    [(33, 16, [11, 11, 11]), (10, 4, [4, 3, 3]), (5, 9, [5]), (5, 2, [3, 2]), (1, 2, [1])],
)
def test_batches_are_nearly_equal(num_images: int, batch_size: int, expected: list[int]) -> None:
    num_parts = order.num_batches(num_images, batch_size)
    parts = [order.part(num_images, num_parts, index) for index in range(num_parts)]
    assert [part.stop - part.start for part in parts] == expected
    assert [row for part in parts for row in range(num_images)[part]] == list(range(num_images))


@pytest.mark.parametrize("num_parts", [1, 2, 3, 7])
def test_parts_of_pairs_cover_everything_and_cut_no_pair(num_parts: int) -> None:
    for num_images in range(2 * num_parts, 40):
        parts = [order.part_of_pairs(num_images, num_parts, index) for index in range(num_parts)]
        assert [row for part in parts for row in range(num_images)[part]] == list(range(num_images))
        sizes = [part.stop - part.start for part in parts]
        assert all(part.start % 2 == 0 for part in parts)
        assert min(sizes) >= 2
        assert max(sizes) - min(sizes) <= 3
