"""Columns of the tables that describe images, and the digest of a table's rows."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

_TIME = pa.timestamp("us", tz="UTC")

MANIFEST = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),  # SHA-256 of the bytes
        pa.field("label", pa.string()),  # null: a tombstone, the image is withdrawn
        pa.field("split", pa.string()),  # train, val or test where the source brings its own
        pa.field("width", pa.int32()),  # px, after orientation; null in tombstones, as all below but the time
        pa.field("height", pa.int32()),
        pa.field("format", pa.string()),  # JPEG, PNG, WEBP, BMP or GIF
        pa.field("mode", pa.string()),  # Pillow's mode of the file
        pa.field("size_bytes", pa.int64()),
        pa.field("phash", pa.uint64()),
        pa.field("event_timestamp", _TIME, nullable=False),
        pa.field("source_uri", pa.string(), nullable=False),
    ]
)
"""An interval manifest: one row an image, sorted by image_id, which is unique."""

STATISTICS = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("brightness", pa.float32()),  # mean luma, 0 to 1
        pa.field("contrast", pa.float32()),  # standard deviation of luma, 0 to 0.5
        pa.field("sharpness", pa.float32()),  # variance of the Laplacian of luma
        pa.field("entropy", pa.float32()),  # bits of the luma histogram, 0 to 8
        pa.field("aspect", pa.float32()),  # width / height
        pa.field("size_px", pa.int64()),  # width x height
        pa.field("size_bytes", pa.int64()),
    ]
)
"""Statistics of an interval's images (tombstones have none), in the manifest's order."""

INGESTED = pa.schema([*MANIFEST, *(field for field in STATISTICS if field.name not in MANIFEST.names)])
"""What one shard's ingestion found: manifest and statistics side by side."""

QUARANTINE = pa.schema(
    [
        pa.field("source_uri", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),  # a stable code
        pa.field("detail", pa.string(), nullable=False),  # for people
        pa.field("label", pa.string()),
        pa.field("image_id", pa.string()),
        pa.field("size_bytes", pa.int64()),
    ]
)
"""Files that are not in the manifest, and why; sorted by source_uri."""

DUPLICATES = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("source_uri", pa.string(), nullable=False),
        pa.field("label", pa.string()),
        pa.field("split", pa.string()),
        pa.field("kept_uri", pa.string(), nullable=False),
        pa.field("kept_split", pa.string()),
    ]
)
"""Further files of one interval with the same bytes and label as a row of the manifest."""

SNAPSHOT = pa.schema(
    [
        *(field for field in MANIFEST),
        pa.field("source_split", pa.string()),  # the source's own; `split` is the one that counts
        pa.field("group_id", pa.string(), nullable=False),  # image_id of the first of its near-duplicates
        pa.field("excluded_reason", pa.string()),  # why `split` is `excluded`
        pa.field("interval", pa.string(), nullable=False),  # where the row is from
    ]
)
"""A snapshot's manifest, sorted by image_id; `split` is train, val, test or excluded."""

SPLITS = ("train", "val", "test")
EXCLUDED = "excluded"


PLAN = pa.schema(
    [
        pa.field("uri", pa.string(), nullable=False),
        pa.field("label", pa.string()),
        pa.field("split", pa.string()),
        pa.field("event_timestamp", _TIME, nullable=False),
        pa.field("version", pa.string(), nullable=False),
        pa.field("tombstone", pa.bool_(), nullable=False),
        pa.field("image_id", pa.string()),
        pa.field("reason", pa.string()),
        pa.field("detail", pa.string()),
        pa.field("archive", pa.string()),
        pa.field("offset", pa.int64()),
        pa.field("size_bytes", pa.int64()),
    ]
)
"""A shard's files, as core.sources lists them."""


def shard_name(shard: int) -> str:
    """The file of one shard of a plan."""
    return f"shard-{shard:05d}.parquet"


URI = "uri:"
"""Begins what stands for the image_id in a tombstone whose file is gone."""


def uri_id(uri: str) -> str:
    """What stands for the image_id in a tombstone whose file is gone: it withdraws what was read from there."""
    return URI + hashlib.sha256(uri.encode()).hexdigest()


def is_uri_id(ids: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.starts_with(ids, URI)


def read(path: Path | str | pa.BufferReader, columns: Sequence[str] | None = None) -> pa.Table:
    """A Parquet table, whole."""
    return pq.read_table(path, columns=list(columns) if columns is not None else None)


def write(path: Path, table: pa.Table) -> None:
    """Write a table; equal tables give equal bytes."""
    pq.write_table(table, path, compression="zstd", row_group_size=65_536, store_schema=False)


def empty(schema: pa.Schema) -> pa.Table:
    return schema.empty_table()


def rows_digest(table: pa.Table) -> str:
    """SHA-256 over column names and values in row order, whatever the table's chunks or the library's version."""
    digest = hashlib.sha256(str(table.num_rows).encode())
    for name in table.column_names:
        digest.update(f"\0{name}\0".encode())
        for part in _plain(table.column(name)):
            digest.update(part)
    return digest.hexdigest()


def _plain(column: pa.ChunkedArray) -> Iterable[bytes]:
    """A column's nulls, then its values, in bytes that do not depend on Arrow's memory layout."""
    yield np.packbits(column.is_null().to_numpy(zero_copy_only=False)).tobytes()
    if pa.types.is_timestamp(column.type):
        column = column.cast(pa.int64())
    elif pa.types.is_boolean(column.type):
        column = column.cast(pa.int8())
    if not pa.types.is_string(column.type):
        yield np.ascontiguousarray(pc.fill_null(column, 0).to_numpy()).tobytes()
        return
    filled = pc.fill_null(column, "")
    yield pc.binary_length(filled).to_numpy().astype("<i4").tobytes()
    for chunk in filled.chunks:
        yield "".join(chunk.to_pylist()).encode()
