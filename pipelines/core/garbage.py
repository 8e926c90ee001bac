"""What in the store nothing refers to any more.

Roots are dataset heads, parked intervals, young runs, each DAG's latest run, registered packages and deployed bentos.
From them everything that is needed is marked; what is neither marked nor young may go.

It is safe beside running steps: whatever a step makes or finds is young, since finding refreshes it; and before
anything is deleted the marks are made again and its age is looked at again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from pipelines.core import manifest
from pipelines.core.datasets import interval_key, list_parked, names, read_head, snapshot_key
from pipelines.core.package_store import package_prefix
from pipelines.core.storage import Storage

_TABLES = {"ingest": "images.parquet", "assemble": "manifest.parquet", "snapshot": "manifest.parquet"}
"""Results that name images."""


@dataclass(frozen=True, kw_only=True)
class Roots:
    """What is referred to from outside the store."""

    packages: frozenset[str] = frozenset()
    """Digests of registered and deployed packages."""
    bento_keys: frozenset[str] = frozenset()
    """Bentos that serve, will serve or can be rolled back to."""


@dataclass(frozen=True, kw_only=True)
class Garbage:
    """An object, or a folder of objects that stay or go together."""

    kind: str
    key: str
    """The object's key, or the folder's with a '/' at its end."""
    num_objects: int
    size_bytes: int


@dataclass
class Marks:
    """What must stay."""

    runs: set[str] = field(default_factory=set)
    """`<dag_id>/<run_id>`."""
    results: set[str] = field(default_factory=set)
    """`<step>/<key>`."""
    intervals: set[str] = field(default_factory=set)
    """Keys of their folders."""
    packages: set[str] = field(default_factory=set)
    snapshots: set[str] = field(default_factory=set)
    images: set[str] = field(default_factory=set)
    bento_keys: set[str] = field(default_factory=set)

    def keeps(self, key: str) -> bool:
        """Whether an object is needed; an object of a kind that gc does not know is."""
        part = key.split("/")
        match part[0], len(part):
            case "blobs", 3:
                return part[2] in self.images
            case "results", _:
                return "/".join(part[1:3]) in self.results
            case "runs", _:
                return "/".join(part[1:3]) in self.runs
            case "packages" | "lineage", _:
                return part[1] in self.packages
            case "snapshots", 3:
                return part[1] in self.snapshots
            case "bentos", _:
                return key in self.bento_keys
            case "datasets", length if length > 4 and part[2] == "intervals":
                return "/".join(part[:5]) in self.intervals
            case "datasets", length if length > 3 and part[2] == "active":
                return False
        return True


_WHOLES = {"results": 3, "runs": 3, "packages": 2, "lineage": 2, "datasets": 5}
"""Kinds whose folders stay or go whole, with the number of their keys' parts; the other kinds are single objects."""

KINDS = ("blobs", "snapshots", "bentos", *_WHOLES)


def find_garbage(storage: Storage, marks: Marks, cutoff: float) -> Iterator[Garbage]:
    """What is not marked and was last used before the cutoff (epoch seconds)."""
    for kind in KINDS:
        for whole, entries in groupby(storage.list(f"{kind}/"), key=lambda entry: _whole(entry.key)):
            if not marks.keeps(whole):
                members = list(entries)
                if max(entry.modified_at for entry in members) < cutoff:
                    size = sum(entry.size_bytes for entry in members)
                    yield Garbage(kind=kind, key=whole, num_objects=len(members), size_bytes=size)


def _whole(key: str) -> str:
    """The folder that an object stays or goes with, or the object's own key."""
    parts = key.split("/")
    length = _WHOLES.get(parts[0], len(parts))
    return f"{'/'.join(parts[:length])}/" if len(parts) > length else key


def free(storage: Storage, found: Iterable[Garbage], marks: Marks, cutoff: float) -> Iterator[Garbage]:
    """Delete what by newer marks, and by its age now, is still garbage, and yield it."""
    for garbage in found:
        if marks.keeps(garbage.key):
            continue
        one = storage.find(garbage.key) if not garbage.key.endswith("/") else None
        members = list(storage.list(garbage.key)) if garbage.key.endswith("/") else [one] if one else []
        if members and max(entry.modified_at for entry in members) < cutoff:
            # The seal goes first, so that nobody takes half a result for a whole one.
            for entry in sorted(members, key=lambda entry: not entry.key.endswith(_SEALS)):
                storage.delete(entry.key)
            yield garbage


_SEALS = ("/result.json", "/package.json", "/run.json")


def mark(storage: Storage, roots: Roots, cutoff: float) -> Marks:
    """Everything that the roots need."""
    marks = Marks(packages=set(roots.packages), bento_keys=set(roots.bento_keys))
    _mark_datasets(storage, marks)
    _mark_runs(storage, marks, cutoff)
    for digest in sorted(marks.packages):
        found = storage.read_versioned(f"{package_prefix(digest)}/package.json")
        if found is not None:
            marks.snapshots.add(json.loads(found[0])["lineage"]["snapshot_id"])
    for snapshot in sorted(marks.snapshots):
        _mark_images(storage, marks, snapshot_key(snapshot))
    return marks


def _mark_datasets(storage: Storage, marks: Marks) -> None:
    for name in names(storage):
        for interval, part in read_head(storage, name).parts.items():
            key = interval_key(name, interval, part.digest)
            marks.intervals.add(key.rpartition("/")[0])
            marks.runs.add(part.run)
            _mark_images(storage, marks, key)
        marks.runs.update(parked.run for parked in list_parked(storage, name))


def _mark_runs(storage: Storage, marks: Marks, cutoff: float) -> None:
    """Runs that stay: those marked already, the young and the latest of each DAG; and what their steps made."""
    ages: dict[str, float] = {}
    for entry in storage.list("runs/"):
        run = "/".join(entry.key.split("/")[1:3])
        ages[run] = max(ages.get(run, 0.0), entry.modified_at)
    latest: dict[str, str] = {}
    for run in sorted(ages, key=lambda run: ages[run]):
        latest[run.partition("/")[0]] = run
    marks.runs.update(latest.values(), (run for run, age in ages.items() if age >= cutoff))
    for run in sorted(marks.runs):
        for entry in storage.list(f"runs/{run}/"):
            if not entry.key.endswith("/run.json"):
                _mark_result(storage, marks, json.loads(storage.read(entry.key)))


def _mark_result(storage: Storage, marks: Marks, reference: Mapping[str, Any]) -> None:
    name = f"{reference['step']}/{reference['key']}"
    if name in marks.results:
        return
    marks.results.add(name)
    found = storage.read_versioned(f"results/{name}/result.json")
    value = json.loads(found[0])["value"] if found else {}
    if "package_digest" in value:
        marks.packages.add(value["package_digest"])
    if "snapshot_id" in value:
        marks.snapshots.add(value["snapshot_id"])
    if reference["step"] in _TABLES:
        _mark_images(storage, marks, f"results/{name}/{_TABLES[reference['step']]}")


def _mark_images(storage: Storage, marks: Marks, key: str) -> None:
    import pyarrow as pa

    found = storage.read_versioned(key)
    if found is not None:
        table = manifest.read(pa.BufferReader(found[0]), ["image_id"])
        marks.images.update(table["image_id"].to_pylist())
