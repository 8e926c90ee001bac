"""The prediction log in the object store, which drift work reads: Parquet, a folder a model and a day (UTC).

An object's name begins with the time of its last row, so that who looks for newer ones need not open it; it holds what
was collected at one time, sorted by time. Raw images, where they are kept, lie by the SHA-256 of their bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any
from urllib.parse import quote, unquote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.core.errors import IntegrityError
from pipelines.core.storage import Entry, Storage

PREFIX = "predictions/"
IMAGES_PREFIX = "prediction_images/"
SCHEMA_VERSION = "1"
"""Of SCHEMA: counted up when a column's meaning changes. A new column may be null in older objects."""
_VERSION_KEY = b"darkroom.predictions"
_BATCH_ROWS = 1024
_TIME = "%Y%m%dT%H%M%S"
_NUMBERS = pa.list_(pa.field("item", pa.float32(), nullable=False))

SCHEMA = pa.schema(
    [
        pa.field("at", pa.timestamp("us", tz="UTC"), nullable=False),
        pa.field("version", pa.string(), nullable=False),
        pa.field("package_digest", pa.string(), nullable=False),
        pa.field("variant", pa.string(), nullable=False),
        pa.field("request_id", pa.string(), nullable=False),
        pa.field("image_index", pa.int32(), nullable=False),  # place in the request
        pa.field("credential", pa.string(), nullable=False),  # who asked: an id, never a key
        pa.field("input", pa.string(), nullable=False),  # image or pixels
        pa.field("image_sha256", pa.string(), nullable=False),  # of the bytes that were sent
        pa.field("image_width", pa.int32()),  # px, after orientation; null for pixels
        pa.field("image_height", pa.int32()),
        pa.field("label", pa.int32(), nullable=False),  # the most probable class
        pa.field("class_name", pa.string(), nullable=False),
        pa.field("cached", pa.bool_(), nullable=False),  # answered from memory
        pa.field("share", pa.float64(), nullable=False),  # probability of being logged: 1/share is the row's weight
        pa.field("probabilities", _NUMBERS, nullable=False),
        pa.field("embedding", _NUMBERS, nullable=False),
    ],
    metadata={_VERSION_KEY: SCHEMA_VERSION.encode()},
)
"""Columns of an object; the model and the day are in its key, as Hive has it."""

READ = pa.schema([pa.field("model", pa.string(), nullable=False), *SCHEMA])
"""Columns of what `read` gives."""


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which predictions are asked for; every part narrows."""

    model: str = ""
    since: datetime | None = None
    until: datetime | None = None
    """The first moment that is left out."""
    package_digest: str = ""
    request_id: str = ""
    """Of a stream, the connection's id selects every frame's."""


EVERYTHING = Selection()


def object_key(model: str, last: datetime, digest: str) -> str:
    """Where rows of one day lie whose last is of that time (UTC); the digest is of what they were collected from."""
    return f"{PREFIX}model={quote(model, safe='')}/date={last:%Y-%m-%d}/{last:{_TIME}}-{digest[:32]}.parquet"


def image_key(sha256: str) -> str:
    return f"{IMAGES_PREFIX}{sha256[:2]}/{sha256}"


def parquet(table: pa.Table) -> bytes:
    """Rows of SCHEMA as an object's bytes."""
    sink = pa.BufferOutputStream()
    # Embeddings and probabilities do not repeat, so dictionaries of them are only in the way.
    words = [field.name for field in SCHEMA if pa.types.is_string(field.type)]
    pq.write_table(table, sink, compression="zstd", use_dictionary=words)
    return bytes(sink.getvalue())


def read(
    storage: Storage,
    selection: Selection = EVERYTHING,
    *,
    columns: Sequence[str] | None = None,
) -> Iterator[pa.RecordBatch]:
    """What was logged, as batches with `columns` of READ (all unless given), each batch sorted by time.

    Objects come in the order of models, days and last rows; memory holds one of them, 32 MB. What is older than was
    asked for is not read. Raises IntegrityError for an object of a later version than this code.
    """
    for folder, _ in _days(storage, selection):
        for key in _keys(storage, folder, selection):
            yield from _batches(storage, key, selection, columns or READ.names)


def newest(storage: Storage, selection: Selection, *, limit: int, columns: Sequence[str]) -> list[dict[str, Any]]:
    """The last `limit` rows that are selected, oldest first; `columns` must hold `at`. Raises what `read` does."""
    found: list[dict[str, Any]] = []
    folders: dict[date, list[str]] = {}
    for folder, day in _days(storage, selection):
        folders.setdefault(day, []).append(folder)
    for day in sorted(folders, reverse=True):
        keys = [key for folder in folders[day] for key in _keys(storage, folder, selection)]
        for key in sorted(keys, key=_end_of, reverse=True):
            if len(found) == limit and found[0]["at"] >= _end_of(key):
                return found  # nothing in there, nor in what is older, is newer than these
            for batch in _batches(storage, key, selection, columns):
                found += batch.slice(max(0, batch.num_rows - limit)).to_pylist()
            found = sorted(found, key=lambda row: row["at"])[-limit:]
    return found


def expired(storage: Storage, before: date) -> Iterator[Entry]:
    """Objects of days before one, and images that nobody has sent since then."""
    for folder, day in _days(storage, EVERYTHING):
        if day < before:
            yield from storage.list(folder)
    moment = datetime(before.year, before.month, before.day, tzinfo=UTC).timestamp()
    for entry in storage.list(IMAGES_PREFIX):
        if entry.modified_at < moment:
            yield entry


def _days(storage: Storage, selection: Selection) -> Iterator[tuple[str, date]]:
    """Folders by model and day."""
    since, until = (moment.astimezone(UTC).date() if moment else None for moment in (selection.since, selection.until))
    names = [f"model={quote(selection.model, safe='')}"] if selection.model else storage.folders(PREFIX)[0]
    for name in names:
        for part in storage.folders(f"{PREFIX}{name}/")[0]:
            day = date.fromisoformat(part.removeprefix("date="))
            if (since is None or day >= since) and (until is None or day <= until):
                yield f"{PREFIX}{name}/{part}/", day


def _keys(storage: Storage, folder: str, selection: Selection) -> list[str]:
    keys = [entry.key for entry in storage.list(folder)]
    return [key for key in keys if selection.since is None or _end_of(key) > selection.since]


def _end_of(key: str) -> datetime:
    """Every row of an object is before this time."""
    name = key.rpartition("/")[2].partition("-")[0]
    return datetime.strptime(name, _TIME).replace(tzinfo=UTC) + timedelta(seconds=1)


def _batches(storage: Storage, key: str, selection: Selection, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Selected rows of an object."""
    found = storage.read_versioned(key)
    if found is None:  # it has just expired
        return
    model = unquote(key.split("/")[1].removeprefix("model="))
    file = pq.ParquetFile(pa.BufferReader(found[0]))
    version = (file.schema_arrow.metadata or {}).get(_VERSION_KEY, b"").decode() or "unknown"
    if version != SCHEMA_VERSION:
        where = storage.locate(key)
        raise IntegrityError(f"{where}: predictions of version {version}, where this code reads {SCHEMA_VERSION}")
    tested = {"at", "package_digest", "request_id"} & set(file.schema_arrow.names)
    stored = [name for name in SCHEMA.names if name in tested or name in columns]
    for batch in file.iter_batches(_BATCH_ROWS, columns=stored):
        kept = batch.filter(_mask(batch, selection))
        if kept.num_rows:
            models = pa.repeat(pa.scalar(model), kept.num_rows)
            arrays = [models if name == "model" else kept[name] for name in columns]
            yield pa.RecordBatch.from_arrays(arrays, schema=pa.schema([READ.field(name) for name in columns]))


def _mask(batch: pa.RecordBatch, selection: Selection) -> Any:
    mask = pc.is_valid(batch["at"])
    if selection.since is not None:
        mask = pc.and_(mask, pc.greater_equal(batch["at"], pa.scalar(selection.since, SCHEMA.field("at").type)))
    if selection.until is not None:
        mask = pc.and_(mask, pc.less(batch["at"], pa.scalar(selection.until, SCHEMA.field("at").type)))
    if selection.package_digest:
        mask = pc.and_(mask, pc.starts_with(batch["package_digest"], selection.package_digest))
    if selection.request_id:
        ids = batch["request_id"]
        frames = pc.starts_with(ids, f"{selection.request_id}/")
        mask = pc.and_(mask, pc.or_(pc.equal(ids, selection.request_id), frames))
    return mask


def first_day_kept(keep_days: int, now: datetime) -> date:
    """The day before which nothing is kept any more."""
    return (now.astimezone(UTC) - timedelta(days=keep_days)).date()
