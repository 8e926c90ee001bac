"""Random numbers as a function of their place in the training, so that no generator's state has to be saved."""

from __future__ import annotations

import hashlib

import torch


def seed_of(seed: int, *place: int | str) -> int:
    """63 bits from the recipe's seed and a place such as ("batch", epoch, step)."""
    text = "\0".join(map(str, (seed, *place)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) >> 1


def generator(seed: int, *place: int | str) -> torch.Generator:
    """A CPU generator for one place: the same numbers on every device, after every restart, in every process."""
    return torch.Generator().manual_seed(seed_of(seed, *place))
