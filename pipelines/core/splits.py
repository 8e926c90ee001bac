"""Which images train, which choose (val) and which judge (test), so that no near-duplicates are on two sides.

The split is a function of the set of images alone. Images are walked by the time they were first seen: one takes the
split of its earlier near-duplicates; where those disagree it is left out; where there are none, a hash of its id
decides. So what was assigned stays assigned when newer images arrive.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipelines.core import perceptual
from pipelines.core.manifest import EXCLUDED, SPLITS
from pipelines.core.recipe import Split

Indices = npt.NDArray[np.int64]

_BITS = {"train": 1, "val": 2, "test": 4}
_SPLIT_OF = {bit: split for split, bit in _BITS.items()}

MIN_LARGE_GROUP = 10
"""A group of no more images than this never counts as too large: in a set of 60, one pair is above 2 percent."""


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """The split of each image, in the order they were given."""

    splits: list[str]
    reasons: list[str | None]
    """Why an image is excluded."""
    groups: Indices
    """Position of the first image, by the walk, of each one's near-duplicates."""
    warnings: tuple[str, ...]


def assign(
    image_ids: Sequence[str],
    first_seen: Indices,
    hashes: perceptual.Hashes,
    source_splits: Sequence[str | None],
    options: Split,
) -> Assignment:
    """Assign images, given by image_id in ascending order.

    `first_seen` are times in any unit. A split that the source brings is kept; where it brings some but no val or no
    test, these are carved from its train images.
    """
    order = np.argsort(first_seen, kind="stable").astype(np.int64)
    distinct, kind = np.unique(hashes, return_inverse=True)
    counts = np.bincount(kind, minlength=len(distinct))
    limit = max(options.max_group_share * len(image_ids), MIN_LARGE_GROUP)
    near = perceptual.neighbours(distinct, options.near_duplicate_distance, counts, limit)
    warnings: list[str] = []
    if near.too_large:
        warnings.append(
            f"the perceptual hash does not fit these images: more than {int(limit)} of them would be near-duplicates of"
            " each other (split.max_group_share); only exact duplicates were kept together"
        )
        kind = np.arange(len(image_ids))
        near = perceptual.Neighbours(pairs=np.empty((0, 2), np.int64), groups=kind, too_large=False)
    walk = _Walk(image_ids, kind, near.pairs, source_splits, options)
    splits = walk.splits(order)
    reasons = [walk.reasons.get(at) for at in range(len(image_ids))]
    if walk.reasons:
        warnings.append(f"{len(walk.reasons)} images excluded: their near-duplicates are in different splits")
    return Assignment(
        splits=splits, reasons=reasons, groups=_first_of_group(near.groups[kind], order), warnings=tuple(warnings)
    )


def _first_of_group(groups: Indices, order: Indices) -> Indices:
    """For each image the one of its group that the walk meets first."""
    first = np.empty(len(groups) and int(groups.max()) + 1, dtype=np.int64)
    first[groups[order[::-1]]] = order[::-1]  # the last assignment, which is the first met, stays
    return first[groups]


class _Walk:
    """The state of one walk: which splits the images of each distinct hash have taken."""

    def __init__(
        self,
        image_ids: Sequence[str],
        kind: Indices,
        pairs: Indices,
        source_splits: Sequence[str | None],
        options: Split,
    ) -> None:
        self._ids = image_ids
        self._kind = kind
        self._source = source_splits
        self._options = options
        self._brought = {split for split in source_splits if split is not None}
        self._carve = bool(self._brought) and not {"val", "test"} <= self._brought
        self._links: dict[int, list[int]] = {}
        for left, right in pairs.tolist():
            self._links.setdefault(left, []).append(right)
            self._links.setdefault(right, []).append(left)
        self._taken = np.zeros(int(kind.max(initial=-1)) + 1, dtype=np.int8).tolist()
        self._fixed = list(self._taken)
        self.reasons: dict[int, str] = {}

    def splits(self, order: Indices) -> list[str]:
        found: list[str] = [""] * len(self._ids)
        walkers: list[int] = []
        for at in order.tolist():
            split = self._source[at]
            if split is None or (split == "train" and self._carve):
                walkers.append(at)
            else:
                found[at] = split
                self._fixed[self._kind[at]] |= _BITS[split]
        for at in walkers:
            found[at] = self._step(at)
        return found

    def _step(self, at: int) -> str:
        carved = self._source[at] is not None
        kinds = [int(self._kind[at]), *self._links.get(int(self._kind[at]), ())]
        seen = 0
        for kind in kinds:
            # The source's own splits stand even where near-duplicates cross them; validation reports those.
            seen |= self._taken[kind] if carved else self._taken[kind] | self._fixed[kind]
        if seen not in _SPLIT_OF and seen:
            names = " and ".join(split for split in SPLITS if seen & _BITS[split])
            self.reasons[at] = f"near-duplicates of it are in {names}"
            return EXCLUDED
        split = _SPLIT_OF[seen] if seen else self._draw(at, carved)
        self._taken[kinds[0]] |= _BITS[split]
        return split

    def _draw(self, at: int, carved: bool) -> str:
        options = self._options
        test = 0.0 if carved and "test" in self._brought else options.test_share
        val = 0.0 if carved and "val" in self._brought else options.val_share
        digest = hashlib.sha256(f"{options.salt}\0{self._ids[at]}".encode()).digest()
        share = int.from_bytes(digest[:8]) / 2**64
        return "test" if share < test else "val" if share < test + val else "train"


def missing_classes(splits: Sequence[str], labels: Sequence[str]) -> dict[str, list[str]]:
    """Classes that have no image in a split, by split."""
    present = Counter(zip(splits, labels, strict=True))
    classes = sorted(set(labels))
    return {split: [label for label in classes if not present[split, label]] for split in SPLITS}
