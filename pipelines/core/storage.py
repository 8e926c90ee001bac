"""One interface over a local folder and an S3 prefix.

Keys are relative, '/'-separated. Every write is atomic: a reader sees the old object or the new one, never a part.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pipelines.core.errors import NotFound, SourceError


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One stored object. `version` changes whenever its bytes do."""

    key: str
    size_bytes: int
    version: str


class Storage(Protocol):
    """A flat namespace of objects."""

    uri: str

    def read(self, key: str) -> bytes:
        """Bytes of an object. Raises NotFound."""

    def read_versioned(self, key: str) -> tuple[bytes, str] | None:
        """Bytes and version token, or None where there is no such object."""

    def write(self, key: str, data: bytes) -> None:
        """Create or replace an object."""

    def write_file(self, key: str, path: Path) -> None:
        """Create or replace an object from a local file, in bounded memory. The file may be moved away."""

    def compare_and_swap(self, key: str, expected: str | None, data: bytes) -> bool:
        """Replace the object only if its version is still `expected` (None: only if absent)."""

    def exists(self, key: str) -> bool: ...

    def delete(self, key: str) -> None:
        """Remove an object; a missing one is no error."""

    def list(self, prefix: str = "") -> Iterator[Entry]:
        """Objects whose keys start with `prefix`, in key order, streaming."""

    def local(self, key: str, cache: Path) -> Path:
        """A local file or folder with the content of `key`: the very one, or a copy below `cache`. Raises NotFound."""

    def locate(self, key: str) -> str:
        """The object's absolute URI (a path or s3://)."""


class LocalStorage:
    """Objects as files below a folder; renames make writes atomic."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self.uri = str(self.root)

    def _path(self, key: str) -> Path:
        path = self.root / key
        if ".." in Path(key).parts or Path(key).is_absolute():
            raise SourceError(f"{key}: keys stay below {self.root}")
        return path

    def read(self, key: str) -> bytes:
        try:
            return self._path(key).read_bytes()
        except (FileNotFoundError, NotADirectoryError) as error:
            raise NotFound(f"{self.locate(key)}: no such object") from error

    def read_versioned(self, key: str) -> tuple[bytes, str] | None:
        try:
            data = self._path(key).read_bytes()
        except FileNotFoundError:
            return None
        return data, hashlib.sha256(data).hexdigest()

    def write(self, key: str, data: bytes) -> None:
        path = self._path(key)
        temporary = _beside(path)
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    def write_file(self, key: str, path: Path) -> None:
        target = self._path(key)
        temporary = _beside(target)
        try:
            try:
                path.rename(temporary)
            except OSError:  # another file system
                shutil.copyfile(path, temporary)
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)

    def compare_and_swap(self, key: str, expected: str | None, data: bytes) -> bool:
        with _locked(self._path(key)):
            found = self.read_versioned(key)
            if (found[1] if found else None) != expected:
                return False
            self.write(key, data)
            return True

    def exists(self, key: str) -> bool:
        return self._path(key).exists()

    def delete(self, key: str) -> None:
        self._path(key).unlink(missing_ok=True)

    def list(self, prefix: str = "") -> Iterator[Entry]:
        folder, _, start = prefix.rpartition("/")
        yield from _walk(self.root, folder, start)

    def local(self, key: str, cache: Path) -> Path:  # noqa: ARG002 (a local object needs no copy)
        path = self._path(key)
        if not path.exists():
            raise NotFound(f"{path}: no such object")
        return path

    def locate(self, key: str) -> str:
        return str(self._path(key))


def _walk(root: Path, folder: str, start: str) -> Iterator[Entry]:
    try:
        children = sorted(os.scandir(root / folder), key=lambda child: child.name + ("/" if child.is_dir() else ""))
    except (FileNotFoundError, NotADirectoryError):
        return
    for child in children:
        if not child.name.startswith(start) or child.name.startswith(".partial-"):
            continue
        key = f"{folder}/{child.name}" if folder else child.name
        if child.is_dir():
            yield from _walk(root, key, "")
        elif not child.name.endswith(".lock"):
            status = child.stat()
            yield Entry(key=key, size_bytes=status.st_size, version=f"{status.st_size}-{status.st_mtime_ns}")


def _beside(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.parent / f".partial-{uuid.uuid4().hex}"


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{path}.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def open_storage(uri: str, *, endpoint_url: str | None = None) -> Storage:  # noqa: ARG001
    """The storage behind a path, file:// or s3:// URI. Raises SourceError for other schemes."""
    if uri.startswith("file://"):
        uri = uri.removeprefix("file://")
    if "://" in uri:
        raise SourceError(f"{uri}: expected a folder or an s3:// prefix")
    return LocalStorage(Path(uri))
