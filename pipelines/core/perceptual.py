"""A 64-bit perceptual hash, and the near-duplicates in a set of them.

The hash is pHash (Zauner, 2010): the 8 x 8 lowest frequencies of a 32 x 32 grey image's cosine transform, each against
their median. The transform is done in whole numbers, so that every machine gets the same bits.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

SIDE = 32
_BITS = 64
_LOW = 8

Hashes = npt.NDArray[np.uint64]
Indices = npt.NDArray[np.int64]


def _cosines() -> npt.NDArray[np.int64]:
    row, column = np.arange(_LOW)[:, None], np.arange(SIDE)[None, :]
    return np.asarray(np.rint(1024 * np.cos(np.pi * row * (2 * column + 1) / (2 * SIDE))), dtype=np.int64)


_COSINES = _cosines()


def phash(grey: npt.NDArray[np.uint8]) -> Hashes:
    """Hashes [N] of grey images uint8 [N, 32, 32]; the first bit is the constant term's."""
    low = (_COSINES @ grey.astype(np.int64) @ _COSINES.T).reshape(len(grey), _BITS)
    bits = low > np.median(low, axis=1, keepdims=True)
    return np.packbits(bits, axis=1).view(">u8").ravel().astype(np.uint64)


@dataclass(frozen=True, kw_only=True)
class Neighbours:
    """Near-duplicates among distinct hashes."""

    pairs: Indices
    """[P, 2], each pair once, the smaller index first; sorted."""
    groups: Indices
    """[N]: index of the first hash that is joined to each by a chain of pairs."""
    too_large: bool
    """A group outgrew the limit, and the search stopped there."""


def neighbours(hashes: Hashes, distance: int, weights: Indices, largest: float) -> Neighbours:
    """All pairs of distinct hashes within a Hamming distance.

    The 64 bits are cut into distance + k bands. Two hashes within the distance agree in at least k of them, so that
    looking only at those which agree in some k bands finds every pair (pigeonhole). `weights` [N] counts the images of
    each hash; a group of more than `largest` of them ends the search.
    """
    groups = np.arange(len(hashes), dtype=np.int64)
    found: list[Indices] = [np.empty((0, 2), np.int64)]
    for mask in _masks(distance, len(hashes)):
        for pairs in _close_pairs(hashes, mask, distance):
            found.append(pairs)
            groups = _join(groups, pairs)
        if np.bincount(groups, weights=weights).max(initial=0) > largest:
            return Neighbours(pairs=np.empty((0, 2), np.int64), groups=groups, too_large=True)
        # Bands overlap, so a pair is found more than once; what is kept stays within one copy of each.
        found = [np.unique(np.concatenate(found), axis=0)] if len(found) > 1 else found
    return Neighbours(pairs=found[0], groups=groups, too_large=False)


def _masks(distance: int, count: int) -> Iterator[np.uint64]:
    """Bit masks of every choice of k bands, with the k that compares and sorts least."""

    def cost(k: int) -> float:
        choices = math.comb(distance + k, k)
        bits = _BITS * k / (distance + k)
        return choices * count * (20 + count / 2**bits)

    k = min(range(1, 6), key=cost)
    edges = [round(_BITS * at / (distance + k)) for at in range(distance + k + 1)]
    bands = [((1 << high) - 1) ^ ((1 << low) - 1) for low, high in itertools.pairwise(edges)]
    for chosen in itertools.combinations(bands, k):
        yield np.uint64(sum(chosen))


_BLOCK = 1 << 22
"""Comparisons at once; 32 MB an array."""


def _close_pairs(hashes: Hashes, mask: np.uint64, distance: int) -> Iterator[Indices]:
    """Pairs within the distance among hashes that agree under the mask, in blocks."""
    if not len(hashes):
        return
    keys = hashes & mask
    order = np.argsort(keys, kind="stable")
    ordered, values = keys[order], hashes[order]
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    ends = np.append(starts[1:], len(ordered))
    # Each position is compared with those after it in its bucket.
    rest = np.repeat(ends, ends - starts) - np.arange(len(ordered)) - 1
    at = 0
    total = np.concatenate([[0], np.cumsum(rest)])
    while at < len(ordered):
        # As many positions as fill a block, but at least one.
        until = max(int(np.searchsorted(total, total[at] + _BLOCK, side="right")) - 1, at + 1)
        counts = rest[at:until]
        left = np.repeat(np.arange(at, until), counts)
        first = np.repeat(np.cumsum(counts) - counts, counts)
        right = left + 1 + (np.arange(len(left)) - first)
        close = np.bitwise_count(values[left] ^ values[right]) <= distance
        if close.any():
            pairs = np.stack([order[left[close]], order[right[close]]], axis=1)
            yield np.sort(pairs, axis=1)
        at = until


def _join(groups: Indices, pairs: Indices) -> Indices:
    """Groups after joining the pairs' ones; each group is named by its smallest member."""
    while True:
        left, right = groups[pairs[:, 0]], groups[pairs[:, 1]]
        if (left == right).all():
            return groups
        groups = groups.copy()
        smaller = np.minimum(left, right)
        np.minimum.at(groups, left, smaller)
        np.minimum.at(groups, right, smaller)
        while True:  # follow the names to their roots
            roots = groups[groups]
            if (roots == groups).all():
                break
            groups = roots
