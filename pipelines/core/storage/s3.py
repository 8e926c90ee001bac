"""Objects below an S3 prefix. The only place of boto3."""

from __future__ import annotations

import builtins
import hashlib
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from pipelines.core.errors import NotFound, PlatformError, SourceError
from pipelines.core.storage.interface import REFRESH_S, Entry

if TYPE_CHECKING:
    from datetime import datetime

PAGE_SIZE = 1000
_MISSING = ("404", "NoSuchKey", "NotFound")
_LOST_RACE = ("PreconditionFailed", "ConditionalRequestConflict", "412", "409", *_MISSING)


class _Listed(TypedDict):
    Key: str
    Size: int
    ETag: str
    LastModified: datetime


class S3Storage:
    """Objects in a bucket, below a prefix. Credentials and region come from the usual AWS places."""

    def __init__(self, uri: str, *, endpoint_url: str | None = None) -> None:
        bucket, _, prefix = uri.removeprefix("s3://").partition("/")
        if not bucket:
            raise SourceError(f"{uri}: expected s3://bucket/prefix")
        self.bucket = bucket
        self.prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        self.uri = f"s3://{bucket}/{self.prefix}".rstrip("/")
        self.endpoint_url = endpoint_url
        self._client = _client(endpoint_url)

    def read(self, key: str) -> bytes:
        found = self.read_versioned(key)
        if found is None:
            raise NotFound(f"{self.locate(key)}: no such object")
        return found[0]

    def read_versioned(self, key: str) -> tuple[bytes, str] | None:
        with self._errors(key):
            answer = self._client.get_object(Bucket=self.bucket, Key=self.prefix + key)
            return answer["Body"].read(), answer["ETag"]
        return None

    def write(self, key: str, data: bytes) -> None:
        with self._errors(key):
            self._client.put_object(Bucket=self.bucket, Key=self.prefix + key, Body=data)

    def write_new(self, key: str, data: bytes) -> None:
        if self.compare_and_swap(key, None, data):
            return
        found = self.find(key)
        if found is None or found.size_bytes != len(data):
            self.write(key, data)
        else:
            self._refresh(found)

    def refresh(self, key: str) -> None:
        found = self.find(key)
        if found is not None:
            self._refresh(found)

    def _refresh(self, entry: Entry) -> None:
        if time.time() - entry.modified_at > REFRESH_S:
            place = {"Bucket": self.bucket, "Key": self.prefix + entry.key}
            with self._errors(entry.key):
                # S3 copies an object onto itself only if something changes.
                self._client.copy_object(**place, CopySource=place, MetadataDirective="REPLACE")

    def flush(self) -> None:
        """S3 answers a write only when it is safe."""

    def write_file(self, key: str, path: Path) -> None:
        with self._errors(key):
            self._client.upload_file(str(path), self.bucket, self.prefix + key)

    def compare_and_swap(self, key: str, expected: str | None, data: bytes) -> bool:
        condition = {"IfNoneMatch": "*"} if expected is None else {"IfMatch": expected}
        with self._errors(key, _LOST_RACE):
            self._client.put_object(Bucket=self.bucket, Key=self.prefix + key, Body=data, **condition)
            return True
        return False

    def exists(self, key: str) -> bool:
        return self.find(key) is not None or next(self.list(f"{key}/"), None) is not None

    def find(self, key: str) -> Entry | None:
        with self._errors(key):
            answer = self._client.head_object(Bucket=self.bucket, Key=self.prefix + key)
            return Entry(
                key=key,
                size_bytes=answer["ContentLength"],
                version=answer["ETag"],
                modified_at=answer["LastModified"].timestamp(),
            )
        return None

    def delete(self, key: str) -> None:
        with self._errors(key):
            self._client.delete_object(Bucket=self.bucket, Key=self.prefix + key)

    def list(self, prefix: str = "") -> Iterator[Entry]:
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=self.prefix + prefix)
        with self._errors(prefix):
            for page in pages:
                for item in page.get("Contents", ()):
                    if not item["Key"].endswith("/"):  # markers that consoles write for empty folders
                        yield self._entry(item)

    def folders(self, prefix: str = "") -> tuple[builtins.list[str], builtins.list[Entry]]:
        start = self.prefix + prefix
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=start, Delimiter="/")
        names: list[str] = []
        files: list[Entry] = []
        with self._errors(prefix):
            for page in pages:
                names += [item["Prefix"][len(start) :].rstrip("/") for item in page.get("CommonPrefixes", ())]
                files += [self._entry(item) for item in page.get("Contents", ()) if not item["Key"].endswith("/")]
        return names, files

    def local(self, key: str, cache: Path) -> Path:
        """A copy of this very version: the cache folder's name holds the digest of the listing."""
        single = self.find(key)
        entries = [single] if single is not None else list(self.list(f"{key}/"))
        if not key or not entries:
            raise NotFound(f"{self.locate(key)}: no such object")
        versions = "\n".join(f"{entry.key} {entry.size_bytes} {entry.version}" for entry in entries)
        identity = hashlib.sha256(f"{self.endpoint_url} {self.uri} {key}\n{versions}".encode()).hexdigest()
        home = cache / "s3" / identity[:32]
        name = key.rstrip("/").rpartition("/")[2]
        if not home.exists():
            self._download(entries, key if single is None else "", home, name)
        os.utime(home)  # the age by which gc clears the cache
        return home / name

    def locate(self, key: str) -> str:
        return f"s3://{self.bucket}/{self.prefix}{key}"

    def _download(self, entries: builtins.list[Entry], folder: str, home: Path, name: str) -> None:
        partial = home.parent / f".partial-{uuid.uuid4().hex}"
        try:
            for entry in entries:
                target = partial / name / entry.key[len(folder) + 1 :] if folder else partial / name
                if not target.resolve().is_relative_to(partial.resolve()):
                    raise SourceError(f"{self.locate(entry.key)}: its key leaves its folder")
                target.parent.mkdir(parents=True, exist_ok=True)
                with self._errors(entry.key):
                    self._client.download_file(self.bucket, self.prefix + entry.key, str(target))
            try:
                partial.rename(home)
            except OSError:  # another process was first
                if not home.exists():
                    raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def _entry(self, item: _Listed) -> Entry:
        return Entry(
            key=item["Key"][len(self.prefix) :],
            size_bytes=item["Size"],
            version=item["ETag"],
            modified_at=item["LastModified"].timestamp(),
        )

    def _errors(self, key: str, expected: tuple[str, ...] = _MISSING) -> _Errors:
        return _Errors(self, key, expected)


class _Errors:
    """Swallows the expected answers; turns the others into errors that name the object and the mend."""

    def __init__(self, storage: S3Storage, key: str, expected: tuple[str, ...]) -> None:
        self._storage = storage
        self._key = key
        self._expected = expected

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError

        endpoint = self._storage.endpoint_url
        where = self._storage.locate(self._key)
        if isinstance(error, ClientError):
            code = str(error.response.get("Error", {}).get("Code", ""))
            if code == "NoSuchBucket":
                raise SourceError(f"s3://{self._storage.bucket}: no such bucket at {endpoint or 'AWS'}") from error
            if code in self._expected:
                return True
            raise PlatformError(f"{where}: {error}; are the credentials right?") from error
        if isinstance(error, BotoCoreError | Boto3Error):
            setting = f"DARKROOM_S3_ENDPOINT_URL={endpoint}" if endpoint else "the AWS configuration"
            raise PlatformError(f"{where}: {error}; check {setting}") from error
        return False


@cache  # making one takes 0.2 s
def _client(endpoint_url: str | None) -> Any:  # boto3 makes its client classes at run time
    import boto3
    from botocore.config import Config

    session = boto3.session.Session()
    own: dict[str, Any] = {}
    if endpoint_url:  # what other makers of S3 understand as well
        own = {
            "s3": {"addressing_style": "path"},
            "request_checksum_calculation": "when_required",
            "response_checksum_validation": "when_required",
        }
    config = Config(retries={"mode": "standard", "max_attempts": 5}, max_pool_connections=32, **own)
    region = session.region_name or "us-east-1"
    return session.client("s3", endpoint_url=endpoint_url, region_name=region, config=config)
