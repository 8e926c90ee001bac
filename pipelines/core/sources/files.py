"""What a source lists, and how a listed file's bytes are read."""

from __future__ import annotations

import errno
import os
import stat
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol

from pipelines.core.errors import ImageError, NotFound, PlatformError, SourceError
from pipelines.core.preprocessing import MAX_BYTES
from pipelines.core.sources.archive import plain_archive
from pipelines.core.storage import Storage, open_storage

_OF_THE_FILE = (None, errno.EINVAL, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENODEV, errno.ENXIO)
"""What an OSError's number may be where the file is to blame; a decompressor's has none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceFile:
    """One file or table row of a source."""

    uri: str
    """Where the bytes are: a path, s3://…, or <archive>!/<member>."""
    label: str | None
    """Class name; None for a tombstone and for what is quarantined unread."""
    split: str | None
    """train, val or test, where the source says so."""
    event_timestamp: datetime
    version: str
    """Changes when the bytes do, as far as a listing can tell."""
    tombstone: bool = False
    image_id: str | None = None
    """SHA-256, where a table says so."""
    reason: str | None = None
    """Why the file is quarantined unread."""
    detail: str | None = None
    archive: str | None = None
    """URI of the archive that holds it."""
    offset: int | None = None
    """Position of the bytes in a tar."""
    size_bytes: int | None = None


class ImageSource(Protocol):
    """Labelled images, by interval."""

    uri: str

    def intervals(self) -> set[str]:
        """Days (YYYY-MM-DD) with images, and `static` where there are undated ones."""

    def files(self, interval: str, notes: list[str]) -> Iterator[SourceFile]:
        """Files of one interval in a stable order, streaming; what a person should know is added to `notes`."""


class Reader:
    """Bytes of listed files. One a process: it keeps archives and connections open."""

    def __init__(self, cache: Path, endpoint_url: str | None) -> None:
        self._cache = cache
        self._endpoint_url = endpoint_url
        self._descriptors: dict[str, int] = {}
        self._zips: dict[str, zipfile.ZipFile] = {}
        self._buckets: dict[str, Storage] = {}

    def read(self, uri: str, archive: str | None, offset: int | None, size_bytes: int | None) -> bytes:
        """The whole file. Raises ImageError `missing_file`, `unreadable` or `too_many_bytes`; and PlatformError where
        the machine and not the file is to blame, so that nothing is quarantined for it.
        """
        if size_bytes is not None and size_bytes > MAX_BYTES:
            raise ImageError("too_many_bytes", f"{size_bytes:,} bytes; at most {MAX_BYTES:,}")
        try:
            if archive is not None and offset is not None:
                return os.pread(self._descriptor(archive), size_bytes or 0, offset)
            if archive is not None:
                return self._zip(archive).read(uri[len(archive) + 2 :])
            if "://" in uri:
                return self._object(uri, size_bytes)
            return _file(uri)
        except (FileNotFoundError, NotADirectoryError, SourceError, NotFound) as error:
            raise ImageError("missing_file", "there is no such file") from error
        except (ImageError, PlatformError):
            raise
        except MemoryError as error:
            raise PlatformError(f"{uri}: too little memory to read it") from error
        except OSError as error:
            if error.errno not in _OF_THE_FILE:
                raise PlatformError(f"{uri}: {error.strerror or error}; mend that and run it again") from error
            raise ImageError("unreadable", f"{type(error).__name__}: {error}"[:200]) from error
        except Exception as error:  # zlib's, lzma's, struct's and others of a damaged archive
            raise ImageError("unreadable", f"{type(error).__name__}: {error}"[:200]) from error

    def _descriptor(self, archive: str) -> int:
        if archive not in self._descriptors:
            path = plain_archive(archive, self._cache, self._endpoint_url)
            self._descriptors[archive] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        return self._descriptors[archive]

    def _zip(self, archive: str) -> zipfile.ZipFile:
        if archive not in self._zips:
            self._zips[archive] = zipfile.ZipFile(plain_archive(archive, self._cache, self._endpoint_url))
        return self._zips[archive]

    def _object(self, uri: str, size_bytes: int | None) -> bytes:
        bucket, _, key = uri.removeprefix("s3://").partition("/")
        if bucket not in self._buckets:
            self._buckets[bucket] = open_storage(f"s3://{bucket}", endpoint_url=self._endpoint_url)
        storage = self._buckets[bucket]
        if size_bytes is None:  # tables do not say it
            entry = storage.find(key)
            if entry is not None and entry.size_bytes > MAX_BYTES:
                raise ImageError("too_many_bytes", f"{entry.size_bytes:,} bytes; at most {MAX_BYTES:,}")
        return storage.read(key)


def _file(path: str) -> bytes:
    # A named pipe in the folder would wait for a writer for ever.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ImageError("unreadable", "not a regular file")
        if status.st_size > MAX_BYTES:
            raise ImageError("too_many_bytes", f"{status.st_size:,} bytes; at most {MAX_BYTES:,}")
        return file.read()
