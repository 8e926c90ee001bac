"""What a storage does."""

from __future__ import annotations

import builtins
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One stored object. `version` changes whenever its bytes do."""

    key: str
    size_bytes: int
    version: str
    modified_at: float = 0.0
    """Seconds since the epoch."""


REFRESH_S = 3600.0
"""An object younger than this needs no refreshing; gc leaves at least a day."""


class Storage(Protocol):
    """A flat namespace of objects."""

    uri: str
    endpoint_url: str | None
    """Where an s3:// URI is served; with `uri` it opens the same storage in another process."""

    def read(self, key: str) -> bytes:
        """Bytes of an object. Raises NotFound."""

    def read_versioned(self, key: str) -> tuple[bytes, str] | None:
        """Bytes and version token, or None where there is no such object."""

    def write(self, key: str, data: bytes) -> None:
        """Create or replace an object."""

    def write_new(self, key: str, data: bytes) -> None:
        """Create an object whose key names its content; where it is there already, it is only refreshed.

        It may be lost in a power failure until `flush`.
        """

    def refresh(self, key: str) -> None:
        """Count an object as used now, so that gc spares it; for a missing one, and within an hour, nothing is done."""

    def flush(self) -> None:
        """Wait until everything written survives a power failure."""

    def write_file(self, key: str, path: Path) -> None:
        """Create or replace an object from a local file, in bounded memory. The file may be moved away."""

    def compare_and_swap(self, key: str, expected: str | None, data: bytes) -> bool:
        """Replace the object only if its version is still `expected` (None: only if absent)."""

    def exists(self, key: str) -> bool: ...

    def find(self, key: str) -> Entry | None:
        """One object's entry, or None where there is no such object."""

    def delete(self, key: str) -> None:
        """Remove an object; a missing one is no error."""

    def list(self, prefix: str = "") -> Iterator[Entry]:
        """Objects whose keys start with `prefix`, in key order, streaming."""

    def folders(self, prefix: str = "") -> tuple[builtins.list[str], builtins.list[Entry]]:
        """Names of the folders, and the objects, right below a folder (`prefix` is empty or ends in '/')."""

    def local(self, key: str, cache: Path) -> Path:
        """A local file or folder with the content of `key`: the very one, or a copy below `cache`. Raises NotFound."""

    def locate(self, key: str) -> str:
        """The object's absolute URI (a path or s3://)."""
