"""Anchors of the audit log: signed statements in the object store that the log reached a row with a hash.

An anchor is written once, under a name that sorts by its row, and names the digest of the anchor before it: none can be
changed, put in or taken from between others unnoticed, and of the log nothing up to the last anchor.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields

from pipelines.core.ahead import ahead
from pipelines.core.errors import IntegrityError
from pipelines.core.storage import Storage

GENESIS = "0" * 64
"""Stands for the hash, or the digest, before the first."""
PREFIX = "audit/anchors/"
_DOMAIN = b"darkroom audit anchor\n"
"""Signed in front, so that the signature of an anchor is one of nothing else."""
_READERS = 8
"""Anchors fetched at once: an object store takes some 20 ms for each."""


@dataclass(frozen=True, kw_only=True)
class Anchor:
    """That the history reached row `seq`, whose hash is `hash`."""

    seq: int
    hash: str
    at: str
    """UTC, ISO 8601."""
    previous: str
    """SHA-256 of the anchor before, GENESIS in the first."""
    public_key: str = ""
    """Ed25519, 32 bytes in hex."""
    signature: str = ""
    """Ed25519 (RFC 8032) over `statement`, 64 bytes in hex."""

    @property
    def key(self) -> str:
        return f"{PREFIX}{self.seq:020d}.json"

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.to_bytes()).hexdigest()

    def statement(self) -> bytes:
        """What is signed: everything but the signature."""
        said = {key: value for key, value in asdict(self).items() if key != "signature"}
        return _DOMAIN + json.dumps(said, sort_keys=True, separators=(",", ":")).encode()

    def to_bytes(self) -> bytes:
        return json.dumps(asdict(self), indent=1).encode() + b"\n"


@dataclass(frozen=True, kw_only=True)
class StoredAnchor:
    """An object where anchors are kept, whatever is in it."""

    key: str
    data: bytes


def parse(data: bytes, where: str) -> Anchor:
    """Raises IntegrityError for bytes that `to_bytes` did not make."""
    try:
        table = json.loads(data)
        anchor = Anchor(**{field.name: table[field.name] for field in fields(Anchor)})
        written = type(anchor.seq) is int and anchor.to_bytes() == data
    except (ValueError, TypeError, KeyError):
        written = False
    if not written:
        raise IntegrityError(f"{where}: is no anchor of an audit log, or was changed after it was written")
    return anchor


def newest(storage: Storage) -> StoredAnchor | None:
    """The last one of the store."""
    keys = [entry.key for entry in storage.list(PREFIX)]
    return StoredAnchor(key=keys[-1], data=storage.read(keys[-1])) if keys else None


def stored(storage: Storage) -> Generator[StoredAnchor]:
    """All that are there now, in order; which they are is settled before this returns, their bytes come as needed."""
    keys = [entry.key for entry in storage.list(PREFIX)]
    return _fetched(storage, keys)


def _fetched(storage: Storage, keys: list[str]) -> Generator[StoredAnchor]:
    with ThreadPoolExecutor(_READERS, thread_name_prefix="anchors") as pool:
        found = ahead(pool, storage.read, keys, 2 * _READERS)
        for key, data in zip(keys, found, strict=True):
            yield StoredAnchor(key=key, data=data)
