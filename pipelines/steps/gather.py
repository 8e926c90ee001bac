"""`snapshot` of an import: the images that a foreign model is proved and measured on."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.core import datasets, manifest
from pipelines.core.datasets import STATIC
from pipelines.core.errors import SourceError
from pipelines.core.manifest import EXCLUDED, SPLITS
from pipelines.core.recipe import Split
from pipelines.core.splits import Assignment, assign
from pipelines.core.storage import Storage
from pipelines.core.values import Snapshotted

_LEARNED = "its source calls it a training image, which the model may have learned from"


def gather(assembled: Path, name: str, options: Split, storage: Storage, out: Path) -> Snapshotted:
    """The manifest goes to `out` and, by its id, to snapshots/ in the store, as that of a training does.

    There is no train split, since the model has learned elsewhere: what would be in it judges too. Images that the
    source itself calls training images are excluded; its val and test are kept where it brings both. Images without a
    class have no label. Raises SourceError where there is no image.
    """
    table = manifest.read(assembled / "manifest.parquet")
    if not table.num_rows:
        raise SourceError("no readable image in the data: the model is proved, and measured, on images")
    assignment = _assign(table, options)
    composed = _composed(table, assignment)
    snapshot_id = manifest.rows_digest(composed)
    manifest.write(out / "manifest.parquet", composed)
    datasets.keep_snapshot(storage, snapshot_id, out / "manifest.parquet")
    counts = Counter(composed["split"].to_pylist())
    num_learned = composed["excluded_reason"].to_pylist().count(_LEARNED)
    learned = (f"{num_learned:,} images left out: {_LEARNED}",) if num_learned else ()
    return Snapshotted(
        snapshot_id=snapshot_id,
        dataset=name,
        class_names=tuple(sorted({label for label in table["label"].to_pylist() if label is not None})),
        num_images=composed.num_rows,
        split_counts={split: counts[split] for split in (*SPLITS, EXCLUDED)},
        warnings=(*assignment.warnings, *learned),
    )


def _composed(table: pa.Table, assignment: Assignment) -> pa.Table:
    """Rows of manifest.SNAPSHOT."""
    learned = [split == "train" for split in table["split"].to_pylist()]
    splits = [
        EXCLUDED if hers else "test" if split == "train" else split
        for hers, split in zip(learned, assignment.splits, strict=True)
    ]
    reasons = [_LEARNED if hers else why for hers, why in zip(learned, assignment.reasons, strict=True)]
    columns = {
        **{column: table[column] for column in manifest.MANIFEST.names},
        "split": pa.array(splits, pa.string()),
        "source_split": table["split"],
        "group_id": table["image_id"].take(pa.array(assignment.groups)),
        "excluded_reason": pa.array(reasons, pa.string()),
        "interval": pa.array([STATIC] * table.num_rows, pa.string()),
    }
    return pa.table(columns).select(manifest.SNAPSHOT.names).cast(manifest.SNAPSHOT)


def _assign(table: pa.Table, options: Split) -> Assignment:
    brought = set(pc.unique(table["split"]).to_pylist())
    both = {"val", "test"} <= brought
    return assign(
        table["image_id"].to_pylist(),
        table["event_timestamp"].cast(pa.int64()).to_numpy(),
        table["phash"].to_numpy(),
        table["split"].to_pylist() if both else [None] * table.num_rows,
        options,
    )
