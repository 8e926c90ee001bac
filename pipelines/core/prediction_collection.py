"""From the spool to the object store: finished files become Parquet, and only then are they deleted.

Files that are collected together are first moved into a folder, the batch, and everything that is written gets its name
from the batch's content. So a batch whose collector was killed is written again under the same names, however often;
and that it is done is one rename. One collector works on a spool at a time, which the kernel's lock sees to.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import shutil
import time
import uuid
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa

from pipelines.core import prediction_spool, predictions
from pipelines.core.prediction_spool import Record, Spooled
from pipelines.core.storage import Storage

BATCH_BYTES = 32 * 1024 * 1024
"""Spool files that are collected together: an object's size, and the collector's memory."""
_LOCK = ".collector.lock"
_BATCH, _DONE = "batch-", "done-"
_STALE_S = 60.0
"""A file without its name yet is what a process left that was killed while it made it."""


@dataclass(frozen=True, kw_only=True)
class Collected:
    """What one call of `collect` did."""

    num_predictions: int = 0
    num_images: int = 0
    num_objects: int = 0
    """Parquet objects."""
    lost_bytes: int = 0
    """Half-written when a process was killed."""
    num_unreadable: int = 0
    """Files of another format, which stay until their writers need the room."""

    def __add__(self, other: Collected) -> Collected:
        return Collected(
            num_predictions=self.num_predictions + other.num_predictions,
            num_images=self.num_images + other.num_images,
            num_objects=self.num_objects + other.num_objects,
            lost_bytes=self.lost_bytes + other.lost_bytes,
            num_unreadable=self.num_unreadable + other.num_unreadable,
        )


def collect(spool: Path, storage: Storage) -> Collected:
    """Write what processes have finished. Nothing where another collector is at work, or where the spool is not there.

    Whoever calls it rarely gets few and large objects. Raises what the storage raises; the files stay then, for the
    next call.
    """
    total = Collected()
    with _alone(spool) as alone:
        if not alone:
            return total
        _sweep(spool)
        for left in sorted(spool.glob(f"{_BATCH}*")):
            total += _write(left, storage)
        while batch := _gathered(spool):
            total += _write(batch, storage)
        return total + Collected(
            num_unreadable=sum(not prediction_spool.is_readable(path) for path in prediction_spool.files(spool))
        )


@contextlib.contextmanager
def _alone(spool: Path) -> Iterator[bool]:
    try:
        lock = (spool / _LOCK).open("w")
    except FileNotFoundError:
        yield False
        return
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def _sweep(spool: Path) -> None:
    """What was left by those who were killed."""
    for folder in spool.glob(f"{_DONE}*"):
        shutil.rmtree(folder)
    for path in spool.glob(".[0-9]*"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > _STALE_S:
                path.unlink()


def _gathered(spool: Path) -> Path | None:
    """A new batch of finished files, or None where there are none."""
    found: list[Path] = []
    size = 0
    for path, status in prediction_spool.finished(spool):
        if found and size + status.st_size > BATCH_BYTES:
            break
        found.append(path)
        size += status.st_size
    if not found:
        return None
    batch = spool / f"{_BATCH}{found[0].stem}-{uuid.uuid4().hex[:8]}"
    batch.mkdir(mode=0o700)
    for path in found:
        # Held meanwhile: a writer that needs room may give up the file, and does not find it then.
        with prediction_spool.taken(path) as mine:
            if mine:
                path.rename(batch / path.name)
    return batch


def _write(batch: Path, storage: Storage) -> Collected:
    """Write a batch's objects, then let it go."""
    digest = hashlib.sha256()
    spooled: list[Spooled] = []
    for path in prediction_spool.files(batch):
        data = path.read_bytes()
        spooled.append(prediction_spool.parse(data))
        digest.update(hashlib.sha256(data).digest())
    images = {image.sha256: image.data for one in spooled for image in one.images}
    for sha256, data in images.items():
        storage.write_new(predictions.image_key(sha256), data)
    tables = _tables([record for one in spooled for record in one.records])
    for (model, last), table in tables.items():
        storage.write(predictions.object_key(model, last, digest.hexdigest()), predictions.parquet(table))
    if images:
        storage.flush()
    done = batch.with_name(batch.name.replace(_BATCH, _DONE, 1))
    batch.rename(done)
    shutil.rmtree(done)
    return Collected(
        num_predictions=sum(table.num_rows for table in tables.values()),
        num_images=len(images),
        num_objects=len(tables),
        lost_bytes=sum(one.lost_bytes for one in spooled),
    )


def _tables(records: Sequence[Record]) -> dict[tuple[str, datetime], pa.Table]:
    """Rows by time, one table a model and day, with the time of the last."""
    parts: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for record in sorted(records, key=lambda record: record.at):
        parts[record.model, _moment(record).date().isoformat()].append(record)
    return {(model, _moment(rows[-1])): _table(rows) for (model, _), rows in parts.items()}


def _table(records: Sequence[Record]) -> pa.Table:
    columns = {name: [getattr(record, name) for record in records] for name in predictions.SCHEMA.names if name != "at"}
    at = [_moment(record) for record in records]
    return pa.table({"at": at, **columns}, schema=predictions.SCHEMA)


def _moment(record: Record) -> datetime:
    return datetime.fromtimestamp(record.at, UTC)
