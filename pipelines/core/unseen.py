"""Which test images may judge: those that neither the candidate nor the champion has learned or chosen by."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.core import perceptual
from pipelines.core.recipe import Split
from pipelines.core.splits import MIN_LARGE_GROUP

COLUMNS = ["image_id", "label", "split", "phash", "group_id"]
"""Of a snapshot's manifest."""


def unseen_test_rows(candidate: pa.Table, champion: pa.Table | None, options: Split) -> pa.Table:
    """Test rows of the candidate's snapshot less every image, and near-duplicate, that is train or val in either.

    Both tables are snapshots with COLUMNS. Where a source brought its own splits, near-duplicates may cross them.
    """
    learned = _learned(candidate)
    test = candidate.filter(pc.equal(candidate["split"], "test"))
    seen = pc.is_in(test["group_id"], learned["group_id"].combine_chunks())
    test = test.filter(pc.invert(seen))
    if champion is None:
        return test
    known = _learned(champion)
    seen = pc.is_in(test["image_id"], known["image_id"].combine_chunks())
    test = test.filter(pc.invert(seen))
    # An image that the champion learned may be in the candidate's snapshot, in a chain of near-duplicates.
    again = pc.is_in(candidate["image_id"], known["image_id"].combine_chunks())
    groups = candidate.filter(again)["group_id"].combine_chunks()
    test = test.filter(pc.invert(pc.is_in(test["group_id"], groups)))
    return test.filter(pa.array(~_near(test["phash"].to_numpy(), known["phash"].to_numpy(), options)))


def _learned(snapshot: pa.Table) -> pa.Table:
    return snapshot.filter(pc.is_in(snapshot["split"], pa.array(["train", "val"])))


def _near(hashes: perceptual.Hashes, others: perceptual.Hashes, options: Split) -> npt.NDArray[np.bool_]:
    """Whether each hash is within the recipe's distance of any of the others; nowhere if the hash does not fit."""
    every, kind = np.unique(np.concatenate([hashes, others]), return_inverse=True)
    mine, theirs = kind[: len(hashes)], kind[len(hashes) :]
    counts = np.bincount(kind, minlength=len(every))
    limit = max(options.max_group_share * len(kind), MIN_LARGE_GROUP)
    found = perceptual.neighbours(every, options.near_duplicate_distance, counts, limit)
    if found.too_large:
        # As in the split: these images all look alike to the hash, so only equal bytes count.
        return np.zeros(len(hashes), np.bool_)
    taken = np.zeros(len(every), np.bool_)
    taken[theirs] = True
    close = taken.copy()
    left, right = found.pairs[:, 0], found.pairs[:, 1]
    close[left[taken[right]]] = True
    close[right[taken[left]]] = True
    return np.asarray(close[mine], dtype=np.bool_)
