"""`assemble`: one interval manifest from its shards; duplicates merged, contradictions quarantined."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.core import manifest
from pipelines.core.values import Assembled, Planned

# A copy in the test split keeps the image out of the others: what training has seen proves nothing.
_SPLIT_RANK = {"test": 0, "val": 1, "train": 2, None: 3}

Flags = npt.NDArray[np.bool_]


def assemble(planned: Planned, shards: Sequence[Path], out: Path) -> Assembled:
    """Merge the shards' result folders into `out`. Raises nothing about the data: that is for `validate`."""
    rows = pa.concat_tables([manifest.read(folder / "images.parquet") for folder in shards])
    refused = pa.concat_tables([manifest.read(folder / "quarantine.parquet") for folder in shards])
    order, first, winner = _ranked(rows)
    conflicting = _conflicting(rows, order, winner)
    kept = rows.take(order[first & ~conflicting])
    duplicates = _duplicates(rows, order[~first & ~conflicting], winner[~first & ~conflicting])
    contradictions = _contradictions(rows, order[conflicting])
    quarantine = pa.concat_tables([refused, contradictions]).sort_by("source_uri")
    images = kept.filter(pc.is_valid(kept["label"]))
    manifest.write(out / "manifest.parquet", kept.select(manifest.MANIFEST.names))
    manifest.write(out / "statistics.parquet", images.select(manifest.STATISTICS.names))
    manifest.write(out / "quarantine.parquet", quarantine)
    manifest.write(out / "duplicates.parquet", duplicates)
    counts = Counter(images["label"].to_pylist())
    return Assembled(
        interval=planned.interval,
        num_images=images.num_rows,
        num_tombstones=kept.num_rows - images.num_rows,
        num_quarantined=quarantine.num_rows,
        num_files=planned.num_files,
        class_counts=dict(sorted(counts.items())),
        notes=(*planned.notes, *_notes(quarantine, duplicates, counts)),
    )


def _ranked(rows: pa.Table) -> tuple[npt.NDArray[np.int64], Flags, npt.NDArray[np.int64]]:
    """Row numbers by image, the one that counts first; whether each is that first one; and its image's first one.

    The newest counts; at the same moment a tombstone, then the copy in the most precious split, then the first listed.
    """
    images = _codes(rows["image_id"])
    newest = -rows["event_timestamp"].cast(pa.int64()).to_numpy()
    labelled = rows["label"].is_valid().to_numpy(zero_copy_only=False)
    splits = np.array([_SPLIT_RANK[split] for split in rows["split"].to_pylist()], dtype=np.int64)
    order = np.lexsort((np.arange(len(images)), splits, labelled, newest, images))
    first = np.ones(len(order), dtype=bool)
    first[1:] = images[order][1:] != images[order][:-1]
    winner = order[first][np.cumsum(first) - 1] if len(order) else order
    return order, first, winner


def _conflicting(rows: pa.Table, order: npt.NDArray[np.int64], winner: npt.NDArray[np.int64]) -> Flags:
    """Whether each ordered row's image has, at its newest moment, two labels."""
    labels = _codes(rows["label"])
    times = rows["event_timestamp"].cast(pa.int64()).to_numpy()
    contradicts = (labels[order] != labels[winner]) & (times[order] == times[winner]) & (labels[winner] >= 0)
    return np.isin(winner, winner[contradicts])


def _codes(column: pa.ChunkedArray) -> npt.NDArray[np.int64]:
    """The rank of each text among the distinct ones; -1 for null."""
    encoded = column.combine_chunks().dictionary_encode()
    ranks = np.empty(len(encoded.dictionary) + 1, dtype=np.int64)
    ranks[pc.sort_indices(encoded.dictionary).to_numpy()] = np.arange(len(encoded.dictionary))
    ranks[-1] = -1
    codes: npt.NDArray[np.int64] = pc.fill_null(encoded.indices, -1).to_numpy(zero_copy_only=False)
    return ranks[codes]


def _duplicates(rows: pa.Table, extra: npt.NDArray[np.int64], kept: npt.NDArray[np.int64]) -> pa.Table:
    copies, originals = rows.take(extra), rows.take(kept)
    columns = {
        **{name: copies[name] for name in ("image_id", "source_uri", "label", "split")},
        "kept_uri": originals["source_uri"],
        "kept_split": originals["split"],
    }
    return pa.table(columns).cast(manifest.DUPLICATES)


def _contradictions(rows: pa.Table, conflicting: npt.NDArray[np.int64]) -> pa.Table:
    taken = rows.take(conflicting)
    uses: dict[str, list[str]] = {}
    for row in taken.select(["image_id", "label", "source_uri"]).to_pylist():
        uses.setdefault(row["image_id"], []).append(f"{row['label']} ({row['source_uri']})")
    details = [f"the same image is {' and '.join(uses[image][:5])}" for image in taken["image_id"].to_pylist()]
    columns = {
        "source_uri": taken["source_uri"],
        "reason": pa.array(["conflicting_labels"] * taken.num_rows, pa.string()),
        "detail": pa.array(details, pa.string()),
        **{name: taken[name] for name in ("label", "image_id", "size_bytes")},
    }
    return pa.table(columns).cast(manifest.QUARANTINE)


def _notes(quarantine: pa.Table, duplicates: pa.Table, counts: Counter[str]) -> Iterator[str]:
    """What a person should know, with names."""
    for label in sorted({label for label in quarantine["label"].to_pylist() if label and not counts[label]}):
        yield f"class {label}: none of its files is an image that can be used"
    by_reason: dict[str, list[str]] = {}
    for row in quarantine.select(["reason", "source_uri", "detail"]).to_pylist():
        text = row["detail"] if row["reason"] == "conflicting_labels" else row["source_uri"]
        by_reason.setdefault(row["reason"], []).append(text)
    for reason, found in sorted(by_reason.items()):
        yield f"quarantined, {reason}: {len(found)}, such as {'; '.join(list(dict.fromkeys(found))[:3])}"
    if duplicates.num_rows:
        pairs = duplicates.select(["source_uri", "kept_uri"])[:1].to_pylist()[0]
        yield f"{duplicates.num_rows} files repeat another one, such as {pairs['source_uri']} of {pairs['kept_uri']}"
