"""`snapshot`: compose the accepted intervals of a dataset into one immutable set with splits."""

from __future__ import annotations

from pathlib import Path

from pipelines.core import datasets, manifest
from pipelines.core.datasets import Head
from pipelines.core.errors import UserError
from pipelines.core.recipe import Split
from pipelines.core.snapshot import compose
from pipelines.core.storage import Storage
from pipelines.core.values import Snapshotted


def snapshot(
    storage: Storage, name: str, head: Head, as_of: str, options: Split, out: Path, cache: Path
) -> Snapshotted:
    """Compose the head's intervals up to a day; the manifest goes to `out` and, by its id, to snapshots/ in the store.

    Raises UserError where nothing is accepted or what there is cannot train a classifier.
    """
    chosen = head.until(as_of)
    if not chosen:
        raise UserError(_nothing(storage, name, head, as_of))
    parts = {
        interval: manifest.read(storage.local(datasets.interval_key(name, interval, digest), cache))
        for interval, digest in chosen.items()
    }
    try:
        composed = compose(parts, options)
    except UserError as error:
        raise UserError(f"dataset {name}: {error}") from error
    path = out / "manifest.parquet"
    manifest.write(path, composed.table)
    datasets.keep_snapshot(storage, composed.snapshot_id, path)
    return Snapshotted(
        snapshot_id=composed.snapshot_id,
        dataset=name,
        class_names=composed.class_names,
        num_images=composed.table.num_rows,
        split_counts=composed.split_counts,
        warnings=composed.warnings,
    )


def _nothing(storage: Storage, name: str, head: Head, as_of: str) -> str:
    parked = [one.interval for one in datasets.list_parked(storage, name)]
    if head.parts:
        return f"dataset {name}: no accepted interval up to {as_of}; the first is {min(head.parts)}"
    if parked:
        return f"dataset {name}: no accepted interval; parked by validation: {', '.join(parked[:10])}"
    return f"dataset {name}: no accepted interval; ingest it first with `darkroom run {name}`"
