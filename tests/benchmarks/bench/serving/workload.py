"""Which images are asked for, and in what order."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bench.photographs import Photographs
from pipelines.core.errors import SourceError

MIN_IMAGES = 200
"""Distinct photographs below which caches of all kinds flatter a server."""


def distinct(found: Photographs, count: int, *, least: int = MIN_IMAGES) -> list[Path]:
    """So many JPEGs of different bytes, taken evenly; all where there are fewer, or for 0.

    Raises SourceError where there are fewer than `least`.
    """
    by_digest: dict[str, Path] = {}
    for one in found.files:
        if one.path.suffix.lower() in (".jpg", ".jpeg"):
            by_digest.setdefault(hashlib.sha256(one.path.read_bytes()).hexdigest(), one.path)
    paths = list(by_digest.values())
    if len(paths) < least:
        raise SourceError(
            f"{found.folder}: {len(paths)} different JPEGs, {least} are the least to measure serving with"
        )
    most = min(count or len(paths), len(paths))
    return [paths[number * len(paths) // most] for number in range(most)]


def shuffled(num_images: int, seed: int, passes: int = 1) -> list[int]:
    """Every image once a pass."""
    chance = np.random.default_rng(seed)
    return [int(place) for _ in range(passes) for place in chance.permutation(num_images)]


@dataclass(frozen=True, kw_only=True)
class ZipfTrace:
    """Requests for images whose popularity falls with a power of their rank."""

    order: Sequence[int]
    exponent: float
    repeats: float
    """Share of requests for an image that was asked for before."""


def zipf(num_images: int, length: int, repeats: float, seed: int = 0) -> ZipfTrace:
    """A trace whose expected share of repeats is `repeats`: P(rank r) ~ r^-s, s solved for by bisection.

    Of N images and T independent draws, N - sum((1 - p_r)^T) are expected to be asked for at all. Raises SourceError
    where even equal popularity repeats more often than that.
    """
    low, high = 0.0, 10.0
    if _expected_repeats(num_images, length, low) > repeats:
        raise SourceError(f"{num_images} images are too few for {length} requests with {repeats:.0%} repeats")
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _expected_repeats(num_images, length, middle) < repeats else (low, middle)
    chance = np.random.default_rng(seed)
    by_rank = chance.permutation(num_images)
    order = by_rank[chance.choice(num_images, length, p=_popularity(num_images, low))].tolist()
    return ZipfTrace(order=order, exponent=low, repeats=1 - len(set(order)) / length)


def _popularity(num_images: int, exponent: float) -> NDArray[np.float64]:
    weights = np.arange(1, num_images + 1, dtype=np.float64) ** -exponent
    popularity: NDArray[np.float64] = weights / weights.sum()
    return popularity


def _expected_repeats(num_images: int, length: int, exponent: float) -> float:
    missed = np.exp(length * np.log1p(-np.minimum(_popularity(num_images, exponent), 1 - 1e-12))).sum()
    return float(1 - (num_images - missed) / length)


def evenly(rate: float, seconds: float) -> list[float]:
    """Arrivals at a fixed rate."""
    return [number / rate for number in range(max(1, int(rate * seconds)))]


def poisson(rate: float, seconds: float, seed: int = 0) -> list[float]:
    """Arrivals of people who know nothing of each other, at the same mean rate."""
    gaps = np.random.default_rng(seed).exponential(1 / rate, max(1, int(rate * seconds)))
    return [float(at) for at in np.cumsum(gaps)]
