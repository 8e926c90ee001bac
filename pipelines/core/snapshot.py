"""Snapshots: the accepted intervals of a dataset composed into one set, with splits.

Every order of intervals composes to the same rows, and the rows' digest is the snapshot's id.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.core import manifest
from pipelines.core.errors import UserError
from pipelines.core.recipe import Split
from pipelines.core.splits import assign, missing_classes

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Composition:
    """A composed set."""

    table: pa.Table
    """Columns of manifest.SNAPSHOT, sorted by image_id."""
    snapshot_id: str
    class_names: tuple[str, ...]
    split_counts: dict[str, int]
    warnings: tuple[str, ...]


def merge(parts: Mapping[str, pa.Table]) -> pa.Table:
    """Interval manifests by interval, as one table: newest label wins (event time, then interval), tombstones remove.

    Columns of manifest.MANIFEST, then interval and first_seen (the earliest event time of the image in any interval);
    sorted by image_id.
    """
    tables = [
        table.select(manifest.MANIFEST.names).append_column(
            "interval", pa.array([interval] * table.num_rows, pa.string())
        )
        for interval, table in sorted(parts.items())
    ]
    rows = pa.concat_tables(tables) if tables else _nothing()
    rows = _resolve(rows)
    images = _ranks(rows["image_id"])
    times = rows["event_timestamp"].cast(pa.int64()).to_numpy()
    labelled = rows["label"].is_valid().to_numpy(zero_copy_only=False)
    order = np.lexsort((~labelled, _ranks(rows["interval"]), times, images))
    last = np.ones(len(order), dtype=bool)
    last[:-1] = images[order][1:] != images[order][:-1]
    first_seen = np.full(int(images.max(initial=-1)) + 1, np.iinfo(np.int64).max)
    np.minimum.at(first_seen, images[labelled], times[labelled])
    kept = order[last]
    kept = kept[labelled[kept]]
    seen = pa.array(first_seen[images[kept]], pa.int64()).cast(pa.timestamp("us", tz="UTC"))
    return rows.take(kept).append_column("first_seen", seen).combine_chunks()


def compose(parts: Mapping[str, pa.Table], options: Split) -> Composition:
    """Merge, split and name a set.

    Raises UserError where there are fewer than two classes, a split is empty, or a class has nothing to train on.
    """
    rows = merge(parts)
    ids, labels = rows["image_id"].to_pylist(), rows["label"].to_pylist()
    classes = tuple(sorted(set(labels)))
    if len(classes) < 2:
        raise UserError(
            f"the dataset holds {len(ids)} images of {', '.join(classes) or 'no class'}: a classifier needs two classes"
        )
    assignment = assign(
        ids,
        rows["first_seen"].cast(pa.int64()).to_numpy(),
        rows["phash"].to_numpy(),
        rows["split"].to_pylist(),
        options,
    )
    columns = {
        **{name: rows[name] for name in manifest.MANIFEST.names},
        "split": pa.array(assignment.splits, pa.string()),
        "source_split": rows["split"],
        "group_id": rows["image_id"].take(pa.array(assignment.groups)),
        "excluded_reason": pa.array(assignment.reasons, pa.string()),
        "interval": rows["interval"],
    }
    table = pa.table(columns).select(manifest.SNAPSHOT.names).cast(manifest.SNAPSHOT)
    return Composition(
        table=table,
        snapshot_id=manifest.rows_digest(table),
        class_names=classes,
        split_counts=_counts(assignment.splits),
        warnings=(*assignment.warnings, *_check(assignment.splits, labels)),
    )


def _check(splits: Sequence[str], labels: Sequence[str]) -> list[str]:
    counts = _counts(splits)
    missing = missing_classes(splits, labels)
    mend = "add images of it, or change split.salt, split.val_share or split.test_share in the recipe"
    for split in manifest.SPLITS:
        if not counts[split]:
            raise UserError(f"no image of {len(splits)} falls into the {split} split: {mend.replace(' of it', '')}")
    if missing["train"]:
        raise UserError(f"class {', '.join(missing['train'])}: no image in the train split; {mend}")
    return [
        f"class {', '.join(missing[split])}: no image in the {split} split, so nothing is measured there"
        for split in ("val", "test")
        if missing[split]
    ]


def _counts(splits: Sequence[str]) -> dict[str, int]:
    found = Counter(splits)
    return {split: found[split] for split in (*manifest.SPLITS, manifest.EXCLUDED)}


def _resolve(rows: pa.Table) -> pa.Table:
    """Replace tombstones that know only a URI by tombstones of every image that was read from there."""
    unknown = manifest.is_uri_id(rows["image_id"])
    if not pc.any(unknown).as_py():
        return rows
    tombstones = rows.filter(unknown).to_pylist()
    rest = rows.filter(pc.invert(unknown))
    withdrawn = rest.filter(pc.is_in(rest["source_uri"], pa.array([row["source_uri"] for row in tombstones])))
    images: dict[str, set[str]] = {}
    for row in withdrawn.select(["source_uri", "image_id"]).to_pylist():
        images.setdefault(row["source_uri"], set()).add(row["image_id"])
    known = [{**row, "image_id": image} for row in tombstones for image in sorted(images.get(row["source_uri"], ()))]
    return pa.concat_tables([rest, pa.Table.from_pylist(known, schema=rest.schema)])


def _ranks(column: pa.ChunkedArray) -> Indices:
    """The rank of each text among the distinct ones."""
    encoded = column.combine_chunks().dictionary_encode()
    ranks = np.empty(len(encoded.dictionary), dtype=np.int64)
    ranks[pc.sort_indices(encoded.dictionary).to_numpy()] = np.arange(len(ranks))
    codes: Indices = encoded.indices.to_numpy()
    return ranks[codes]


def _nothing() -> pa.Table:
    return manifest.empty(manifest.MANIFEST).append_column("interval", pa.array([], pa.string()))
