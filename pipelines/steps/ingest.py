"""`ingest`: look at every file of one shard once, store the good ones, and say what is wrong with the others."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipelines.core import inspection, manifest
from pipelines.core.cores import num_cores
from pipelines.core.errors import ImageError
from pipelines.core.inspection import Address, Answer, Inspected, Refused
from pipelines.core.sources.files import Reader
from pipelines.core.storage import Storage
from pipelines.core.values import Ingested
from pipelines.core.workers import Workers

_CHUNK = 64
_FEW = 300
"""Files that are looked at sooner than worker processes would start (0.3 s)."""

_UNREAD = ("missing_file", "unreadable", "crashed")
"""Reasons that say more of the moment than of the file's bytes."""

Row = Mapping[str, Any]


def ingest(
    plan: Path,
    shard: int,
    storage: Storage,
    out: Path,
    *,
    cache: Path,
    endpoint_url: str | None,
    alive: Callable[[], None] = lambda: None,
) -> Ingested:
    """Ingest the files that `plan`/shard-NNNNN.parquet lists, on all cores of this process.

    `alive` is called after every few files. No file raises; what cannot be read is in quarantine.parquet. Raises
    PlatformError where the machine fails, such as a disk or the memory.
    """
    rows = manifest.read(plan / manifest.shard_name(shard)).to_pylist()
    images: list[dict[str, Any]] = []
    quarantine: list[dict[str, Any]] = []
    reader = Reader(cache, endpoint_url)
    for row in rows:
        if row["tombstone"]:
            images.append(_tombstone(row, reader))
        elif row["reason"]:
            quarantine.append(_quarantined(row, Refused(reason=row["reason"], detail=row["detail"])))
    files = [row for row in rows if not row["tombstone"] and not row["reason"]]
    for row, answer in zip(files, _answers(files, storage, cache, endpoint_url, alive), strict=True):
        if isinstance(answer, Inspected):
            images.append(_image(row, answer))
        else:
            quarantine.append(_quarantined(row, answer))
    storage.flush()
    manifest.write(out / "images.parquet", pa.Table.from_pylist(images, schema=manifest.INGESTED))
    manifest.write(out / "quarantine.parquet", pa.Table.from_pylist(quarantine, schema=manifest.QUARANTINE))
    return Ingested(
        shard=shard,
        num_images=len(images),
        num_quarantined=len(quarantine),
        size_bytes=sum(image["size_bytes"] or 0 for image in images),
        num_unread=sum(row["reason"] in _UNREAD for row in quarantine),
    )


def _answers(
    rows: Sequence[Row], storage: Storage, cache: Path, endpoint_url: str | None, alive: Callable[[], None]
) -> Iterator[Answer]:
    addresses = [
        Address(uri=row["uri"], archive=row["archive"], offset=row["offset"], size_bytes=row["size_bytes"])
        for row in rows
    ]
    chunks = [addresses[at : at + _CHUNK] for at in range(0, len(addresses), _CHUNK)]
    start = (storage.uri, storage.endpoint_url, endpoint_url, cache)
    if len(rows) <= _FEW:
        answers: Iterator[list[Answer]] = map(inspection.start(*start), chunks)
    else:
        answers = Workers(inspection.start, start, _crashed, num_cores()).map(chunks)
    for found in answers:
        alive()
        yield from found


def _crashed(_: Address) -> Refused:
    return Refused(reason="crashed", detail="reading it ended the process that tried")


def _image(row: Row, found: Inspected) -> dict[str, Any]:
    source = {name: row[name] for name in ("label", "split", "event_timestamp")}
    return {**asdict(found), **source, "source_uri": row["uri"]}


def _tombstone(row: Row, reader: Reader) -> dict[str, Any]:
    """A withdrawal names its image by the table's word, by the file's bytes, or, where the file is gone, by its URI."""
    image_id = row["image_id"]
    if image_id is None:
        try:
            data = reader.read(row["uri"], row["archive"], row["offset"], row["size_bytes"])
            image_id = hashlib.sha256(data).hexdigest()
        except ImageError:
            image_id = manifest.uri_id(row["uri"])
    known = {"image_id": image_id, "event_timestamp": row["event_timestamp"], "source_uri": row["uri"]}
    return {**dict.fromkeys(manifest.INGESTED.names), **known}


def _quarantined(row: Row, refused: Refused) -> dict[str, Any]:
    known = {**asdict(refused), "source_uri": row["uri"], "label": row["label"]}
    return {**known, "size_bytes": refused.size_bytes if refused.size_bytes is not None else row["size_bytes"]}
