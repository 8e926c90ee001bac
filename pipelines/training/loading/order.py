"""Which images make up each step: a pure function of seed and epoch."""

from __future__ import annotations

import numpy as np
import torch

from pipelines.core.pixelset import Rows
from pipelines.training.randomness import generator

BLOCK = 256
"""Neighbouring images that are read together when streaming; at 100 KB each, 25 MB."""
WINDOW = 64
"""Blocks whose images are mixed with each other."""


def num_batches(num_images: int, batch_size: int) -> int:
    """So many that no batch is larger than asked for, but none of a single image, on which batch norm fails."""
    return max(1, min(-(-num_images // batch_size), num_images // 2))


def part(length: int, num_parts: int, index: int) -> slice:
    """The index-th of nearly equal contiguous parts."""
    size, longer = divmod(length, num_parts)
    start = index * size + min(index, longer)
    return slice(start, start + size + (index < longer))


def part_of_pairs(length: int, num_parts: int, index: int) -> slice:
    """The same with no pair of neighbours cut in two, beginning with the first; of an odd length the last are three."""
    num_pairs = length // 2
    pairs = part(num_pairs, num_parts, index)
    return slice(2 * pairs.start, 2 * pairs.stop if pairs.stop < num_pairs else length)


def shuffled(num_images: int, seed: int, epoch: int) -> Rows:
    """Every row once, int64 [N]."""
    order: Rows = torch.randperm(num_images, generator=generator(seed, "order", epoch)).numpy()
    return order


def shuffled_in_blocks(num_images: int, seed: int, epoch: int, *, block: int = BLOCK, window: int = WINDOW) -> Rows:
    """Every row once, int64 [N], such that reading stays near: blocks of neighbours in random order, and the images of
    `window` blocks mixed at a time."""
    random = generator(seed, "order", epoch)
    blocks = torch.randperm(-(-num_images // block), generator=random).numpy()
    rows = (blocks[:, None] * block + np.arange(block)).reshape(-1)
    rows = rows[rows < num_images]
    for start in range(0, num_images, block * window):
        mixed = rows[start : start + block * window]
        mixed[:] = mixed[torch.randperm(len(mixed), generator=random).numpy()]
    return rows
