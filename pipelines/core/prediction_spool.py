"""The prediction log on local disk, between the processes that serve and whoever collects it.

A spool is a folder of append-only files. Each is written by one process, which holds a lock on it for as long as it
writes: a file that nobody has locked is finished, however its writer ended. A file is a line that names the format,
then frames, each with its length and checksum; what a killed process left half-written is recognized and skipped.

It is part of every bento, so it needs nothing but the standard library and numpy.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import struct
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

FORMAT = b"darkroom predictions 1\n"
"""First line of a file. Bentos of several ages write into one spool: a field that is added has a default, and what
older code could not read counts this up."""
SUFFIX = ".spool"
SEGMENT_BYTES = 4 * 1024 * 1024
"""A file that has grown to this size is finished; only a single larger frame makes a larger one."""

_FRAME = struct.Struct("<cII")
"""Kind, bytes of the content, CRC-32 of both."""
_PREDICTION, _IMAGE = b"P", b"I"
_ARRAYS = ("probabilities", "embedding")


@dataclass(frozen=True, kw_only=True, eq=False)
class Record:
    """One answer that was given."""

    at: float
    """Seconds since the epoch."""
    model: str
    version: str
    package_digest: str
    variant: str
    request_id: str
    image_index: int
    """Place of the image in its request."""
    credential: str
    """Id of the API key, or of the token's subject; never the key."""
    input: str
    """`image` or `pixels`."""
    image_sha256: str
    """Of the bytes that were sent."""
    image_width: int | None
    """px, as a person would see it; None where pixels were sent."""
    image_height: int | None
    label: int
    """The most probable class."""
    class_name: str
    cached: bool
    """Answered from memory."""
    share: float
    """Probability with which this answer was chosen to be logged: 1/share is its weight."""
    probabilities: NDArray[np.float32]
    """[num classes]."""
    embedding: NDArray[np.float32]
    """[embedding_dim]."""


_WORDS = tuple(field.name for field in fields(Record) if field.name not in _ARRAYS)


@dataclass(frozen=True, kw_only=True)
class RawImage:
    """The bytes of an image that was asked about."""

    sha256: str
    data: bytes


@dataclass(frozen=True, kw_only=True)
class Spooled:
    """What a file holds."""

    records: tuple[Record, ...]
    images: tuple[RawImage, ...]
    lost_bytes: int
    """At its end, of a frame that was never finished."""


def prediction_frame(record: Record) -> bytes:
    """A record as a frame of a spool file."""
    words: dict[str, Any] = {name: getattr(record, name) for name in _WORDS}
    arrays = [np.ascontiguousarray(getattr(record, name), "<f4") for name in _ARRAYS]
    words |= {name: len(array) for name, array in zip(_ARRAYS, arrays, strict=True)}
    line = json.dumps(words, separators=(",", ":")).encode() + b"\n"
    return _framed(_PREDICTION, b"".join([line, *(array.tobytes() for array in arrays)]))


def image_frame(image: RawImage) -> bytes:
    """An image as a frame of a spool file."""
    return _framed(_IMAGE, bytes.fromhex(image.sha256) + image.data)


def _framed(kind: bytes, content: bytes) -> bytes:
    return _FRAME.pack(kind, len(content), zlib.crc32(content, zlib.crc32(kind))) + content


def readable(start: bytes) -> bool:
    """Whether a file that begins so is in this code's format; one that ends within its first line holds nothing."""
    return start.startswith(FORMAT) or FORMAT.startswith(start)


def parse(data: bytes) -> Spooled:
    """What a readable file's bytes hold, up to the first frame that is not whole."""
    records: list[Record] = []
    images: list[RawImage] = []
    place = min(len(FORMAT), len(data))
    for kind, content, end in _frames(data, place):
        if kind == _PREDICTION:
            records.append(_record(content))
        elif kind == _IMAGE:
            images.append(RawImage(sha256=content[:32].hex(), data=content[32:]))
        place = end
    return Spooled(records=tuple(records), images=tuple(images), lost_bytes=len(data) - place)


def num_records(data: bytes) -> int:
    """How many whole predictions a file's bytes hold."""
    return sum(kind == _PREDICTION for kind, _, _ in _frames(data, len(FORMAT)))


def _frames(data: bytes, place: int) -> Iterator[tuple[bytes, bytes, int]]:
    """Kind, content and end of each whole frame."""
    while place + _FRAME.size <= len(data):
        kind, length, checksum = _FRAME.unpack_from(data, place)
        content = data[place + _FRAME.size : place + _FRAME.size + length]
        if len(content) < length or zlib.crc32(content, zlib.crc32(kind)) != checksum:
            return
        place += _FRAME.size + length
        yield kind, content, place


def _record(content: bytes) -> Record:
    line, _, rest = content.partition(b"\n")
    words = json.loads(line)
    numbers = np.frombuffer(rest, "<f4")
    num_classes = words["probabilities"]
    # What an older bento does not write has a default in Record.
    known = {name: words[name] for name in _WORDS if name in words}
    return Record(**known, probabilities=numbers[:num_classes], embedding=numbers[num_classes:])


# --- files ---------------------------------------------------------------------------------------------------------


def create(folder: Path) -> tuple[int, Path]:
    """A new file, locked and with its first line, and its descriptor. Raises OSError.

    It is locked before it has its name, so that nobody takes it for finished in between.
    """
    name = f"{time.time_ns():020d}-{os.getpid()}"
    temporary, path = folder / f".{name}", folder / f"{name}{SUFFIX}"
    file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.write(file, FORMAT)
        temporary.rename(path)
    except OSError:
        os.close(file)
        temporary.unlink(missing_ok=True)
        raise
    return file, path


def files(folder: Path) -> list[Path]:
    """Oldest first, finished or not."""
    return sorted(folder.glob(f"*{SUFFIX}"))


def everything(folder: Path) -> list[Path]:
    """Files, finished or not, and below the folder those that are being collected, whatever vanishes meanwhile."""
    return sorted(Path(where) / name for where, _, names in os.walk(folder) for name in names if name.endswith(SUFFIX))


def finished(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Readable files that nobody holds, oldest first, with their size and age."""
    for path in files(folder):
        with taken(path) as mine:
            if mine and is_readable(path):
                yield path, path.stat()


def is_readable(path: Path) -> bool:
    """False for a file of another format."""
    try:
        with path.open("rb") as file:
            return readable(file.read(len(FORMAT)))
    except FileNotFoundError:  # given up meanwhile
        return True


@contextlib.contextmanager
def taken(path: Path) -> Iterator[bool]:
    """Hold the lock of a file, or say that somebody else does or that it is gone."""
    try:
        file = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        yield False
        return
    try:
        yield _locked(file) and path.exists()
    finally:
        os.close(file)


def _locked(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
