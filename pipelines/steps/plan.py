"""`plan`: list an interval of the source and cut it into shards."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.core import manifest
from pipelines.core.datasets import STATIC
from pipelines.core.errors import SourceError
from pipelines.core.sources import ImageSource, SourceFile
from pipelines.core.values import Planned

SHARD_SIZE = 10_000
MAX_SHARDS = 1_000
"""An Airflow task a shard: 10,000 mapped tasks take over an hour of scheduling alone."""

_BUFFER = 16_384


def plan(source: ImageSource, interval: str, out: Path, *, shard_size: int = SHARD_SIZE) -> Planned:
    """List the files of an interval, in bounded memory, into `out`/shard-NNNNN.parquet.

    There is always one shard, be it empty: a day without images is a result too. Raises SourceError where an undated
    source has no image at all.
    """
    notes: list[str] = []
    listing = out / "listing.parquet"
    num_files, digest = _list(source.files(interval, notes), listing)
    if not num_files and interval == STATIC:
        days = sorted(source.intervals())
        dated = f"; those of {days[0]} to {days[-1]} need source.dated = true" if days else ""
        raise SourceError(f"{source.uri}: holds no images without a date{dated}")
    size = max(shard_size, math.ceil(num_files / MAX_SHARDS))
    num_shards = max(1, math.ceil(num_files / size))
    _cut(listing, size, out)
    listing.unlink()
    (out / "notes.json").write_text(json.dumps(notes, indent=1))
    return Planned(
        interval=interval, num_files=num_files, num_shards=num_shards, source_digest=digest, notes=tuple(notes[:100])
    )


def _list(files: Iterator[SourceFile], path: Path) -> tuple[int, str]:
    """Write the listing; its length and digest."""
    digest = hashlib.sha256()
    count = 0
    with pq.ParquetWriter(path, manifest.PLAN) as writer:
        while rows := list(islice(files, _BUFFER)):
            table = _table(rows)
            writer.write_table(table)
            digest.update(manifest.rows_digest(table).encode())
            count += len(rows)
    return count, digest.hexdigest()


def _table(rows: Sequence[SourceFile]) -> pa.Table:
    columns = {name: [getattr(row, name) for row in rows] for name in manifest.PLAN.names}
    return pa.table(columns, schema=manifest.PLAN)


def _cut(listing: Path, size: int, out: Path) -> None:
    """Write the listing's rows, `size` at a time, as shards; an empty listing is one empty shard."""
    shard = 0
    rest = manifest.empty(manifest.PLAN)
    for batch in pq.ParquetFile(listing).iter_batches(_BUFFER):
        rest = pa.concat_tables([rest, pa.Table.from_batches([batch])])
        while rest.num_rows >= size:
            manifest.write(out / manifest.shard_name(shard), rest[:size])
            rest = rest[size:]
            shard += 1
    if rest.num_rows or not shard:
        manifest.write(out / manifest.shard_name(shard), rest)
