"""Newest accepted label and source of a dataset's images, in a file that is asked by image (SQLite).

The truth is the accepted manifests, Parquet files of one interval each: to find five images in them is to read them
all. The index is brought up to the dataset's head by reading the intervals that changed, in bounded memory, and a
question to it reads a few pages. It belongs to one machine, lies in its cache and can be deleted at any time.
"""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipelines.core import datasets
from pipelines.core.errors import NotFound
from pipelines.core.results import digest_json
from pipelines.core.storage import Storage

_FORM = 1
"""Of the tables below; a file of another form is made anew."""
_BATCH = 16_384
"""Rows of a manifest in memory at once: some 10 MB."""
_TIMEOUT_S = 60.0
"""For another process that is bringing the same index up to date."""

_TABLES = """
CREATE TABLE head (digest TEXT NOT NULL);
CREATE TABLE parts (interval TEXT PRIMARY KEY, digest TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE images (
    image_id BLOB, interval TEXT, event_us INTEGER NOT NULL, label TEXT, source_uri TEXT NOT NULL,
    PRIMARY KEY (image_id, interval)
) WITHOUT ROWID;
CREATE TABLE withdrawn (
    source_uri TEXT, interval TEXT, event_us INTEGER NOT NULL, PRIMARY KEY (source_uri, interval)
) WITHOUT ROWID;
"""
# The rule of `snapshot.merge`: newest by event time, then interval; a tombstone withdraws the image, or what was read
# from a URI.
_NEWEST = """
SELECT label, source_uri FROM (
    SELECT event_us, interval, label IS NULL AS gone, label, source_uri FROM images WHERE image_id = ?1
    UNION ALL
    SELECT w.event_us, w.interval, 1, NULL, w.source_uri
    FROM images AS i JOIN withdrawn AS w USING (source_uri) WHERE i.image_id = ?1
) ORDER BY event_us DESC, interval DESC, gone DESC LIMIT 1
"""


@dataclass(frozen=True, kw_only=True)
class Known:
    """What is known of an image."""

    label: str | None
    """Class name; None where the image was withdrawn."""
    source_uri: str


@dataclass(frozen=True, kw_only=True)
class Found:
    """An answer of the index."""

    head_digest: str
    """Of the dataset's head that the index is of."""
    images: Mapping[str, Known]
    """By image_id; images that no accepted interval has are missing."""


def index_path(cache: Path, storage: Storage, name: str) -> Path:
    """Where the index of a dataset lies. One store's is not another's."""
    return cache / "labels" / f"{name}-{hashlib.sha256(storage.uri.encode()).hexdigest()[:12]}.sqlite"


def head_of(path: Path) -> str | None:
    """Digest of the head that an index is of; None where there is no index that can be asked."""
    try:
        with _opened(path) as index:
            return str(index.execute("SELECT digest FROM head").fetchone()[0])
    except (sqlite3.Error, TypeError):
        return None


def find(path: Path, image_ids: Sequence[str]) -> Found:
    """Labels and sources of images, by an index that `update` has made.

    Raises sqlite3.Error where there is none; one that is spoilt is removed, so that the next update makes it anew.
    """
    try:
        return _find(path, image_ids)
    except sqlite3.DatabaseError as error:
        if not isinstance(error, sqlite3.OperationalError):
            _remove(path)
        raise


def _find(path: Path, image_ids: Sequence[str]) -> Found:
    with _opened(path) as index:
        index.execute("BEGIN")  # digest and rows of one state, whoever writes meanwhile
        (digest,) = index.execute("SELECT digest FROM head").fetchone()
        images: dict[str, Known] = {}
        for image_id in image_ids:
            row = index.execute(_NEWEST, (bytes.fromhex(image_id),)).fetchone()
            if row is not None:
                images[image_id] = Known(label=row[0], source_uri=row[1])
    return Found(head_digest=digest, images=images)


def update(storage: Storage, name: str, path: Path, cache: Path) -> str:
    """Bring an index up to the dataset's head, and return the head's digest. Killed at any point, the old one stays.

    `cache` is for manifests of a store that is not on this machine. Raises what reading the store raises, and NotFound
    where a dataset that had intervals has none: heads only grow, so it is the store that is away.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        return _update(storage, name, path, cache)
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.OperationalError):  # locked, or the disk is full: not the file's fault
            raise
        _remove(path)
        return _update(storage, name, path, cache)


def _update(storage: Storage, name: str, path: Path, cache: Path) -> str:
    with _opened(path, mode="rwc") as index:
        index.execute("PRAGMA journal_mode = WAL")  # questions are answered meanwhile
        index.execute("PRAGMA synchronous = NORMAL")
        index.execute("BEGIN IMMEDIATE")
        _ensure_tables(index)
        wanted = datasets.read_head(storage, name).intervals
        known = dict(index.execute("SELECT interval, digest FROM parts").fetchall())
        if known and not wanted:
            raise NotFound(f"{storage.uri}: {name} has no head any more; its labels stay what they were")
        _forget(index, [interval for interval, digest in known.items() if wanted.get(interval) != digest])
        for interval, digest in wanted.items():
            if known.get(interval) != digest:
                manifest = storage.local(datasets.interval_key(name, interval, digest), cache)
                _add(index, interval, digest, manifest)
        head = digest_json(wanted)
        index.execute("DELETE FROM head")
        index.execute("INSERT INTO head VALUES (?)", (head,))
        index.execute("COMMIT")
    return head


def _ensure_tables(index: sqlite3.Connection) -> None:
    (form,) = index.execute("PRAGMA user_version").fetchone()
    if form == _FORM:
        return
    if form:
        raise sqlite3.DatabaseError(f"an index of form {form}")
    for statement in _TABLES.split(";"):
        index.execute(statement)
    index.execute(f"PRAGMA user_version = {_FORM}")


def _forget(index: sqlite3.Connection, intervals: Sequence[str]) -> None:
    index.executemany("DELETE FROM parts WHERE interval = ?", ((interval,) for interval in intervals))
    if intervals:
        # Once through the tables, however many intervals changed.
        index.execute("CREATE TEMP TABLE gone (interval TEXT PRIMARY KEY)")
        index.executemany("INSERT INTO gone VALUES (?)", ((interval,) for interval in intervals))
        for table in ("images", "withdrawn"):
            index.execute(f"DELETE FROM {table} WHERE interval IN (SELECT interval FROM gone)")  # noqa: S608
        index.execute("DROP TABLE gone")


def _add(index: sqlite3.Connection, interval: str, digest: str, manifest: Path) -> None:
    for images, withdrawn in _rows(manifest, interval):
        index.executemany("INSERT INTO images VALUES (?, ?, ?, ?, ?)", images)
        index.executemany("INSERT OR REPLACE INTO withdrawn VALUES (?, ?, ?)", withdrawn)
    index.execute("INSERT INTO parts VALUES (?, ?)", (interval, digest))


def _rows(
    manifest: Path, interval: str
) -> Iterator[tuple[list[tuple[bytes, str, int, str | None, str]], list[tuple[str, str, int]]]]:
    """Rows of `images` and of `withdrawn`, batch by batch."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from pipelines.core.manifest import URI

    for batch in pq.ParquetFile(manifest).iter_batches(
        _BATCH, columns=["image_id", "label", "event_timestamp", "source_uri"]
    ):
        times = batch.column("event_timestamp").cast(pa.int64()).to_pylist()
        columns = (batch.column(name).to_pylist() for name in ("image_id", "label", "source_uri"))
        rows = list(zip(*columns, times, strict=True))
        yield (
            [
                (bytes.fromhex(image_id), interval, time, label, uri)
                for image_id, label, uri, time in rows
                if not image_id.startswith(URI)
            ],
            [(uri, interval, time) for image_id, _, uri, time in rows if image_id.startswith(URI)],
        )


@contextlib.contextmanager
def _opened(path: Path, mode: str = "rw") -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(f"{path.as_uri()}?mode={mode}", uri=True, timeout=_TIMEOUT_S, isolation_level=None)
    try:
        yield connection
    finally:
        connection.close()


def _remove(path: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
