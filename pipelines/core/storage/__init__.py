"""One interface over a local folder and an S3 prefix.

Keys are relative, '/'-separated. Every write is atomic: a reader sees the old object or the new one, never a part.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from pipelines.core.errors import SourceError
from pipelines.core.storage.interface import Entry, Storage
from pipelines.core.storage.local import LocalStorage

__all__ = ["Entry", "LocalStorage", "Storage", "open_storage", "opener_of"]


def open_storage(uri: str, *, endpoint_url: str | None = None) -> Storage:
    """The storage behind a path, file:// or s3:// URI. `endpoint_url` names another S3 than Amazon's.

    Raises SourceError for other schemes.
    """
    if uri.startswith("s3://"):
        from pipelines.core.storage.s3 import S3Storage  # boto3 takes 0.2 s to import

        return S3Storage(uri, endpoint_url=endpoint_url)
    if uri.startswith("file://"):
        uri = uri.removeprefix("file://")
    if "://" in uri:
        raise SourceError(f"{uri}: expected a folder or an s3:// prefix")
    return LocalStorage(Path(uri))


def opener_of(storage: Storage) -> Callable[[], Storage]:
    """Opens the same storage again, in another process too."""
    return partial(open_storage, storage.uri, endpoint_url=storage.endpoint_url)
