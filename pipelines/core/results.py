"""Finished results of steps: content-keyed, immutable, published whole or not at all.

A result is `results/<step>/<key>/` with the step's files and `result.json` last. Its digest covers the step's value and
the digest of every file, so that equal work done twice is seen as equal by whatever comes after it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pipelines.core.errors import IntegrityError
from pipelines.core.storage import Storage

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class StoredResult:
    """A finished result: what the step returned and where its files are."""

    step: str
    key: str
    digest: str
    value: Mapping[str, Any]
    files: Mapping[str, str]
    """SHA-256 of each file by its path in the result."""
    folder: Path
    """Local folder with the files."""

    def load(self, cls: type[T]) -> T:
        """The step's value as its dataclass."""
        return from_json(cls, self.value)


class ResultStore:
    """Results in a storage. `cache` holds local copies when the storage is remote."""

    def __init__(self, storage: Storage, cache: Path) -> None:
        self.storage = storage
        self.cache = cache

    def find(self, step: str, key: str) -> StoredResult | None:
        """The finished result, or None. Raises IntegrityError when its record does not match its digest."""
        prefix = f"results/{step}/{key}"
        found = self.storage.read_versioned(f"{prefix}/result.json")
        if found is None:
            return None
        record = json.loads(found[0])
        if _digest(record["value"], record["files"]) != record["digest"]:
            raise IntegrityError(
                f"{self.storage.locate(prefix)}/result.json: does not match its digest; delete the folder"
            )
        self.storage.refresh(f"{prefix}/result.json")  # gc spares what is in use
        return StoredResult(
            step=step,
            key=key,
            digest=record["digest"],
            value=record["value"],
            files=record["files"],
            folder=self.storage.local(prefix, self.cache),
        )

    def publish(
        self, step: str, key: str, folder: Path, value: Any, meta: Mapping[str, Any], *, replace: bool = False
    ) -> StoredResult:
        """Move the files of `folder` into the store and seal them with result.json.

        Where another process finished the same key meanwhile, its result stands and is returned, unless `replace`.
        """
        found = None if replace else self.find(step, key)
        if found is not None:
            return found
        prefix = f"results/{step}/{key}"
        paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        files = {str(path.relative_to(folder)): sha256_file(path) for path in paths}
        if replace:
            # The seal goes first, so that no reader pairs it with new files.
            self.storage.delete(f"{prefix}/result.json")
        for name in files:
            self.storage.write_file(f"{prefix}/{name}", folder / name)
        plain = to_json(value)
        record = {
            "step": step,
            "key": key,
            "digest": _digest(plain, files),
            "value": plain,
            "files": files,
            "meta": dict(meta),
        }
        self.storage.write(f"{prefix}/result.json", json.dumps(record, indent=1, sort_keys=True).encode())
        stored = self.find(step, key)
        assert stored is not None
        return stored


def _digest(value: Any, files: Mapping[str, str]) -> str:
    return digest_json({"value": value, "files": dict(files)})


def digest_json(value: Any) -> str:
    """SHA-256 of canonical JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def sha256_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def to_json(value: Any) -> Any:
    """Plain JSON of a result dataclass."""
    return json.loads(json.dumps(dataclasses.asdict(value), sort_keys=True))


def from_json(cls: type[T], table: Mapping[str, Any]) -> T:
    """A dataclass from plain JSON, nested dataclasses and tuples included."""
    hints = typing.get_type_hints(cls)
    fields = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    return cls(**{name: _revive(hints[name], value) for name, value in table.items() if name in fields})


def _revive(hint: Any, value: Any) -> Any:
    origin = typing.get_origin(hint)
    if origin is types.UnionType:  # `X | None`
        return None if value is None else _revive(typing.get_args(hint)[0], value)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type) and isinstance(value, Mapping):
        return from_json(hint, value)
    if origin is tuple and isinstance(value, list):
        item = typing.get_args(hint)[0]
        return tuple(_revive(item, one) for one in value)
    if origin is dict and isinstance(value, Mapping):
        item = typing.get_args(hint)[1]
        return {key: _revive(item, one) for key, one in value.items()}
    return value
