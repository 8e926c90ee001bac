"""Archives of class folders, seen as folders. Members are never unpacked: they are read where they lie."""

from __future__ import annotations

import bisect
import gzip
import hashlib
import os
import posixpath
import shutil
import tarfile
import uuid
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from pipelines.core.errors import SourceError
from pipelines.core.storage import Entry, open_storage

_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
ARCHIVES = (".tar", ".zip", *_COMPRESSED)


@dataclass(frozen=True, kw_only=True)
class Member(Entry):
    """A file in an archive."""

    offset: int | None = None
    """Where its bytes begin, in a tar."""


class ArchiveTree:
    """The members of a plain tar or a zip. Its index (about 300 bytes a member) is held in memory."""

    def __init__(self, uri: str, path: Path) -> None:
        """Raises SourceError for a file that is no such archive."""
        self.uri = uri
        self.notes: list[str] = []
        read = self._zip if zipfile.is_zipfile(path) else self._tar
        status = path.stat()
        try:
            self._members = dict(read(path, f"{status.st_size}-{status.st_mtime_ns}"))
        except (tarfile.TarError, zipfile.BadZipFile, OSError, EOFError) as error:
            raise SourceError(f"{uri}: cannot be read as a tar or zip: {error}") from error
        self._keys = sorted(self._members)

    def folders(self, prefix: str = "") -> tuple[list[str], list[Entry]]:
        """Names of the folders, and the files, right below a folder."""
        names: list[str] = []
        files: list[Entry] = []
        at = bisect.bisect_left(self._keys, prefix)
        while at < len(self._keys) and self._keys[at].startswith(prefix):
            name, slash, _ = self._keys[at][len(prefix) :].partition("/")
            if slash:
                names.append(name)
                at = bisect.bisect_left(self._keys, f"{prefix}{name}0", at)  # "0" follows "/"
            else:
                if name:
                    files.append(self._members[self._keys[at]])
                at += 1
        return names, files

    def list(self, prefix: str = "") -> Iterator[Entry]:
        """Files below a prefix, in key order."""
        at = bisect.bisect_left(self._keys, prefix)
        while at < len(self._keys) and self._keys[at].startswith(prefix):
            if not self._keys[at].endswith("/"):
                yield self._members[self._keys[at]]
            at += 1

    def locate(self, key: str) -> str:
        return f"{self.uri}!/{key}"

    def _tar(self, path: Path, version: str) -> Iterator[tuple[str, Member]]:
        with tarfile.open(path, "r:", errorlevel=1) as tar:
            for info in tar:
                tar.members = []  # type: ignore[attr-defined]  # tarfile would keep every header
                key = _key(info.name)
                if info.isdir():
                    yield f"{key}/", Member(key=f"{key}/", size_bytes=0, version="")
                elif not info.isreg() or info.issparse():
                    self.notes.append(f"{self.locate(key)}: a link or special file; left out")
                else:
                    yield key, Member(key=key, size_bytes=info.size, version=version, offset=info.offset_data)

    def _zip(self, path: Path, _: str) -> Iterator[tuple[str, Member]]:
        with zipfile.ZipFile(path) as file:
            for info in file.infolist():
                # The name is the member's address, so it stays as it is.
                size = 0 if info.is_dir() else info.file_size
                yield info.filename, Member(key=info.filename, size_bytes=size, version=f"{info.CRC:08x}")


def _key(name: str) -> str:
    return posixpath.normpath(name).lstrip("/").removeprefix("../")


def fetch(uri: str, cache: Path, endpoint_url: str | None) -> Path:
    """A local copy of one file. Raises NotFound."""
    if "://" not in uri:
        return Path(uri)
    parent, _, name = uri.rpartition("/")
    return open_storage(parent, endpoint_url=endpoint_url).local(name, cache)


def plain_archive(uri: str, cache: Path, endpoint_url: str | None) -> Path:
    """A local tar or zip whose members can be read in any order; a compressed tar is expanded once into the cache."""
    path = fetch(uri, cache, endpoint_url)
    if not uri.lower().endswith(_COMPRESSED):
        return path
    status = path.stat()
    identity = hashlib.sha256(f"{uri} {status.st_size} {status.st_mtime_ns}".encode()).hexdigest()[:32]
    target = cache / "archives" / f"{identity}.tar"
    if not target.exists():
        _expand(path, target)
    os.utime(target)  # the age by which gc clears the cache
    return target


def _expand(path: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".partial-{uuid.uuid4().hex}")
    try:
        with _open(path) as source, partial.open("wb") as file:
            shutil.copyfileobj(source, file, 1 << 20)
        partial.replace(target)
    except (EOFError, ValueError) as error:
        raise SourceError(f"{path}: damaged: {error}") from error
    finally:
        partial.unlink(missing_ok=True)


def _open(path: Path) -> IO[bytes]:
    import bz2
    import lzma

    with path.open("rb") as file:
        magic = file.read(6)
    if magic.startswith(b"\x1f\x8b"):
        return cast("IO[bytes]", gzip.open(path, "rb"))
    if magic.startswith(b"BZh"):
        return cast("IO[bytes]", bz2.open(path, "rb"))
    if magic.startswith(b"\xfd7zXZ"):
        return cast("IO[bytes]", lzma.open(path, "rb"))
    raise SourceError(f"{path}: expected a tar compressed by gzip, bzip2 or xz")
