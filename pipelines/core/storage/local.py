"""Objects as files below a folder."""

from __future__ import annotations

import builtins
import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipelines.core.errors import NotFound, SourceError
from pipelines.core.storage.interface import REFRESH_S, Entry

_PARTIAL = ".partial"


class LocalStorage:
    """Objects as files below a folder; renames make writes atomic.

    What is being written lies in `.partial/` below the root, never beside its target: a folder of objects holds nothing
    but objects, wherever a process was killed.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self.uri = str(self.root)
        self.endpoint_url: str | None = None
        self.broken_links: set[str] = set()
        """Links to nothing that listings have left out."""

    def _path(self, key: str) -> Path:
        path = self.root / key
        if ".." in Path(key).parts or Path(key).is_absolute():
            raise SourceError(f"{key}: keys stay below {self.root}")
        return path

    def read(self, key: str) -> bytes:
        try:
            return self._path(key).read_bytes()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            raise NotFound(f"{self.locate(key)}: no such object") from error

    def read_versioned(self, key: str) -> tuple[bytes, str] | None:
        try:
            data = self._path(key).read_bytes()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None
        return data, hashlib.sha256(data).hexdigest()

    def write(self, key: str, data: bytes) -> None:
        path = self._path(key)
        temporary = self._partial(path)
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    def write_new(self, key: str, data: bytes) -> None:
        path = self._path(key)
        try:
            # A size that differs is what a power failure leaves of a file that was never flushed.
            if path.stat().st_size == len(data):
                self._refresh(path)
                return
        except FileNotFoundError:
            pass
        temporary = self._partial(path)
        try:
            temporary.write_bytes(data)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    def refresh(self, key: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._refresh(self._path(key))

    def _refresh(self, path: Path) -> None:
        if time.time() - path.stat().st_mtime > REFRESH_S:
            os.utime(path)

    def leftovers(self) -> Iterator[Path]:
        """Half-written files of processes that were killed, and of those that write now."""
        yield from (self.root / _PARTIAL).glob("*")

    def _partial(self, target: Path) -> Path:
        """Where a file is written before it is renamed to `target`, whose folder is made."""
        target.parent.mkdir(parents=True, exist_ok=True)
        folder = self.root / _PARTIAL
        folder.mkdir(exist_ok=True)
        return folder / uuid.uuid4().hex

    def flush(self) -> None:
        os.sync()

    def write_file(self, key: str, path: Path) -> None:
        target = self._path(key)
        temporary = self._partial(target)
        try:
            try:
                path.rename(temporary)
            except OSError:  # another file system
                shutil.copyfile(path, temporary)
            # Else a power failure could leave an empty file behind a seal that was flushed.
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
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

    def find(self, key: str) -> Entry | None:
        path = self._path(key)
        return _entry(key, path.stat()) if path.is_file() else None

    def delete(self, key: str) -> None:
        self._path(key).unlink(missing_ok=True)

    def list(self, prefix: str = "") -> Iterator[Entry]:
        folder, _, start = prefix.rpartition("/")
        yield from self._walk(folder, start)

    def folders(self, prefix: str = "") -> tuple[builtins.list[str], builtins.list[Entry]]:
        try:
            children = sorted(os.scandir(self._path(prefix)), key=lambda child: child.name)
        except (FileNotFoundError, NotADirectoryError):
            return [], []
        names = [child.name for child in children if _is_folder(child) and not _internal(child.name)]
        files = [child for child in children if not _is_folder(child) and not _internal(child.name)]
        return names, [entry for child in files if (entry := self._listed(f"{prefix}{child.name}", child))]

    def local(self, key: str, cache: Path) -> Path:  # noqa: ARG002 (a local object needs no copy)
        path = self._path(key)
        if not key or not path.exists():
            raise NotFound(f"{path}: no such object")
        return path

    def locate(self, key: str) -> str:
        return str(self._path(key))

    def _walk(self, folder: str, start: str) -> Iterator[Entry]:
        try:
            children = os.scandir(self.root / folder)
        except (FileNotFoundError, NotADirectoryError):
            return
        for child in sorted(children, key=lambda child: child.name + ("/" if _is_folder(child) else "")):
            if not child.name.startswith(start) or _internal(child.name):
                continue
            key = f"{folder}/{child.name}" if folder else child.name
            if _is_folder(child):
                yield from self._walk(key, "")
            elif entry := self._listed(key, child):
                yield entry

    def _listed(self, key: str, child: os.DirEntry[str]) -> Entry | None:
        """None for what was deleted since, and for a link to nothing."""
        try:
            return _entry(key, child.stat())
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ELOOP):
                raise
            if child.is_symlink():
                self.broken_links.add(child.path)
            return None


def _entry(key: str, status: os.stat_result) -> Entry:
    version = f"{status.st_size}-{status.st_mtime_ns}"
    return Entry(key=key, size_bytes=status.st_size, version=version, modified_at=status.st_mtime)


def _is_folder(child: os.DirEntry[str]) -> bool:
    """Also true for a link to a folder, unless the link lies inside that folder: walking it would never end."""
    if not child.is_symlink():
        return child.is_dir()
    path = Path(child.path)
    return path.is_dir() and not path.parent.resolve().is_relative_to(path.resolve())


def _internal(name: str) -> bool:
    """Files of this class: half-written ones and locks."""
    return name == _PARTIAL or (name.startswith(".") and name.endswith(".lock"))


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with (path.parent / f".{path.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
