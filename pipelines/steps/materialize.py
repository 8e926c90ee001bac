"""`materialize`: the feature rows of an interval, first in the offline store, then online.

Killed at any point and run again it ends in the same state: a view's offline file is replaced whole, online rows are
upserts, and what must go online is known from files that are written first.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, MutableMapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.core import manifest
from pipelines.core.datasets import blob_key
from pipelines.core.embedders import pixel_spec
from pipelines.core.embedding import Embedder, Pixels
from pipelines.core.features import (
    ROW_KEYS,
    STATISTICS,
    STATISTICS_VIEW,
    EmbeddingView,
    partition_key,
    tombstones_prefix,
    view_prefix,
)
from pipelines.core.ports import FeatureRepository, OnlineFeatures
from pipelines.core.preprocessing import preprocess
from pipelines.core.storage import Storage
from pipelines.core.values import Materialized

_BATCH = 4096
"""Images held in memory at once: 12 MB of pixels and 2 MB of embeddings."""
_THREADS = 4
"""Readers and decoders; Pillow works without the interpreter lock, and S3 answers several at a time."""
_SOURCE = b"darkroom_source"
"""Parquet metadata: digest of what the rows were made from."""


@dataclass(frozen=True, kw_only=True)
class IntervalTables:
    """What `assemble` left of an interval."""

    interval: str
    manifest: Path
    statistics: Path
    digest: str
    """Digest of both files."""
    accepted: Sequence[Path] = ()
    """Manifests of the accepted intervals."""


def materialize(
    *,
    name: str,
    tables: IntervalTables,
    storage: Storage,
    embedder: Embedder,
    repository: FeatureRepository,
    online: OnlineFeatures,
    scratch: Path,
    facts: MutableMapping[str, Any],
) -> Materialized:
    """Compute what is not there yet, and bring the interval's rows online. `facts` gets the measured rates."""
    embedding = EmbeddingView(name=embedder.view, dim=embedder.dim)
    repository.ensure(embedding)
    _keep_tombstones(name, tables, storage, scratch)
    statistics = _Partition(name=name, view=STATISTICS_VIEW, tables=tables, storage=storage, scratch=scratch)
    vectors = _Partition(name=name, view=embedding.name, tables=tables, storage=storage, scratch=scratch)
    clock = time.perf_counter()
    computed = False
    if not statistics.current():
        statistics.replace(_statistics_rows(tables), online, None)
    if not vectors.current():
        vectors.replace(_embedding_rows(tables, storage, embedder), online, embedding.dim)
        computed = True
    embed_s = time.perf_counter() - clock
    clock = time.perf_counter()
    num_rows = statistics.load(online, None)
    vectors.load(online, embedding.dim)
    _remove_withdrawn(name, tables, storage, online, (STATISTICS_VIEW, embedding.name), scratch)
    load_s = time.perf_counter() - clock
    facts.update(num_rows=num_rows, rows_per_s=round(num_rows / load_s, 1), load_s=round(load_s, 3))
    if computed:
        facts.update(embedded_per_s=round(num_rows / embed_s, 1))
    return Materialized(interval=tables.interval, num_rows=num_rows, views=(STATISTICS_VIEW, embedding.name))


@dataclass(frozen=True, kw_only=True)
class _Partition:
    """The offline rows of one view and interval."""

    name: str
    view: str
    tables: IntervalTables
    storage: Storage
    scratch: Path

    @property
    def key(self) -> str:
        return partition_key(self.name, self.view, self.tables.interval)

    def _file(self) -> Path | None:
        if not self.storage.exists(self.key):
            return None
        return self.storage.local(self.key, self.scratch / "cache")

    def current(self) -> bool:
        """Whether the stored rows were made from these very tables."""
        file = self._file()
        return file is not None and pq.read_schema(file).metadata.get(_SOURCE) == self.tables.digest.encode()

    def replace(self, batches: Iterator[pa.Table], online: OnlineFeatures, dim: int | None) -> None:
        """Write the rows; those of images that are no longer in the interval go offline first."""
        path = self.scratch / f"{self.view}.parquet"
        _write(path, batches, self.tables.digest)
        old = self._file()
        gone = _difference(old, path) if old is not None else None
        if gone is not None and gone.num_rows:
            online.remove(self.view, gone["image_id"].to_pylist(), pc.max(gone["event_timestamp"]).as_py())
            self._restore(gone["image_id"], online, dim)
        self.storage.write_file(self.key, path)

    def _restore(self, image_ids: pa.ChunkedArray, online: OnlineFeatures, dim: int | None) -> None:
        """Bring back online what other intervals still hold of images that left this one."""
        wanted = pc.field("image_id").isin(image_ids.combine_chunks())
        for entry in self.storage.list(f"{view_prefix(self.name, self.view)}/"):
            if entry.key != self.key:
                file = self.storage.local(entry.key, self.scratch / "cache")
                rows = pq.read_table(file, filters=wanted, partitioning=None)
                if rows.num_rows:
                    with online.loading(self.view, rows.num_rows, dim) as writer:
                        writer.write(rows)

    def load(self, online: OnlineFeatures, dim: int | None) -> int:
        """Upsert the rows online, batch by batch; returns how many."""
        file = self._file()
        assert file is not None
        parquet = pq.ParquetFile(file)
        num_rows: int = parquet.metadata.num_rows
        with online.loading(self.view, num_rows, dim) as writer:
            for batch in parquet.iter_batches(_BATCH):
                writer.write(pa.Table.from_batches([batch]))
        return num_rows


def _write(path: Path, batches: Iterator[pa.Table], digest: str) -> None:
    first = next(batches)
    schema = first.schema.with_metadata({_SOURCE: digest.encode()})
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        writer.write_table(first.cast(schema))
        for batch in batches:
            writer.write_table(batch.cast(schema))


def _difference(old: Path, new: Path) -> pa.Table:
    """image_id and event_timestamp of rows of `old` whose image is not in `new`."""
    before = pq.read_table(old, columns=["image_id", "event_timestamp"], partitioning=None)
    after = pq.read_table(new, columns=["image_id"], partitioning=None)
    return before.filter(pc.invert(pc.is_in(before.column("image_id"), value_set=after.column("image_id"))))


def _live(tables: IntervalTables) -> Iterator[pa.Table]:
    """image_id, event_timestamp and created_timestamp of the images; always at least one batch, if an empty one."""
    created = pa.scalar(datetime.now(UTC), pa.timestamp("us", "UTC"))
    parquet = pq.ParquetFile(tables.manifest)
    columns = ["image_id", "label", "event_timestamp"]
    num_batches = 0
    for batch in parquet.iter_batches(_BATCH, columns=columns):
        found = pa.Table.from_batches([batch])
        rows = found.filter(pc.is_valid(found.column("label"))).drop_columns(["label"])
        num_batches += 1
        yield rows.append_column(ROW_KEYS[2], pa.repeat(created, rows.num_rows))
    if not num_batches:
        empty = parquet.schema_arrow.empty_table().select(["image_id", "event_timestamp"])
        yield empty.append_column(ROW_KEYS[2], pa.repeat(created, 0))


def _statistics_rows(tables: IntervalTables) -> Iterator[pa.Table]:
    """Rows of the statistics view. The statistics are in the manifest's order, tombstones left out."""
    waiting = pq.ParquetFile(tables.statistics).iter_batches(_BATCH, columns=["image_id", *STATISTICS])
    buffer = pq.read_schema(tables.statistics).empty_table().select(["image_id", *STATISTICS])
    for rows in _live(tables):
        while buffer.num_rows < rows.num_rows:
            buffer = pa.concat_tables([buffer, pa.Table.from_batches([next(waiting)])])
        part, buffer = buffer.slice(0, rows.num_rows), buffer.slice(rows.num_rows)
        assert part.column("image_id").equals(rows.column("image_id")), "statistics are not in the manifest's order"
        for statistic in STATISTICS:
            rows = rows.append_column(statistic, part.column(statistic))
        yield rows


def _embedding_rows(tables: IntervalTables, storage: Storage, embedder: Embedder) -> Iterator[pa.Table]:
    """Rows of the embedding view, from the stored bytes."""
    spec = pixel_spec(embedder)

    def pixels_of(image_id: str) -> Pixels:
        return preprocess(storage.read(blob_key(image_id)), spec)

    with ThreadPoolExecutor(_THREADS) as pool:
        for rows in _live(tables):
            found = list(pool.map(pixels_of, rows.column("image_id").to_pylist(), chunksize=32))
            shape = (len(found), embedder.height, embedder.width, 3)
            vectors = embedder.embed(np.stack(found) if found else np.empty(shape, np.uint8))
            lists = pa.ListArray.from_arrays(
                np.arange(0, vectors.size + 1, embedder.dim, dtype=np.int32), pa.array(vectors.ravel(), pa.float32())
            )
            yield rows.append_column("embedding", lists)


def _keep_tombstones(name: str, tables: IntervalTables, storage: Storage, scratch: Path) -> None:
    """Note the interval's withdrawn images where every other interval's run finds them."""
    columns = ["image_id", "event_timestamp", "source_uri"]
    rows = pq.read_table(tables.manifest, columns=columns, filters=pc.field("label").is_null(), partitioning=None)
    key = f"{tombstones_prefix(name)}{tables.interval}.parquet"
    if not rows.num_rows:
        storage.delete(key)
        return
    path = scratch / "tombstones.parquet"
    pq.write_table(rows, path)
    storage.write_file(key, path)


def _remove_withdrawn(
    name: str,
    tables: IntervalTables,
    storage: Storage,
    online: OnlineFeatures,
    views: tuple[str, ...],
    scratch: Path,
) -> None:
    """Take withdrawn images offline, whichever interval came first: each run looks at the notes of all of them."""
    cache = scratch / "cache"
    notes = [
        pq.read_table(storage.local(entry.key, cache), partitioning=None)
        for entry in storage.list(tombstones_prefix(name))
    ]
    if not notes:
        return
    withdrawn = pa.concat_tables(notes)
    by_uri = withdrawn.filter(manifest.is_uri_id(withdrawn["image_id"]))
    if by_uri.num_rows:
        withdrawn = pa.concat_tables([withdrawn, _images_of(by_uri, [tables.manifest, *tables.accepted])])
    by_time = withdrawn.group_by("event_timestamp").aggregate([("image_id", "list")]).to_pylist()
    for row in by_time:
        for view in views:
            online.remove(view, row["image_id_list"], row["event_timestamp"])


def _images_of(tombstones: pa.Table, manifests: Sequence[Path]) -> pa.Table:
    """The images that were read from the tombstones' source URIs, each with its tombstone's time."""
    wanted = pc.field("source_uri").isin(tombstones["source_uri"].combine_chunks()) & pc.field("label").is_valid()
    known = [
        pq.read_table(path, columns=["image_id", "source_uri"], filters=wanted, partitioning=None) for path in manifests
    ]
    times = tombstones.select(["source_uri", "event_timestamp"])
    return pa.concat_tables(known).join(times, "source_uri", join_type="inner").select(tombstones.column_names)
