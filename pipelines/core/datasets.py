"""A dataset in the store: image bytes by their digest, accepted interval manifests, the head that names them, and the
intervals that validation turned away.

    blobs/<first 2 hex>/<sha256>                                              image bytes
    datasets/<name>/head.json                                                 which manifest each interval has
    datasets/<name>/intervals/<interval>/<digest>/<table>.parquet             manifest, statistics, quarantine, …
    datasets/<name>/parked/<interval>.json                                    turned away, and why
    datasets/<name>/active/<run>.json                                         ingest runs under way
    snapshots/<id>/manifest.parquet                                           composed sets
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from pipelines.core.errors import PlatformError
from pipelines.core.results import digest_json
from pipelines.core.storage import Storage

STATIC = "static"
"""The interval of images from sources without dates."""

UNDATED = datetime(1970, 1, 1, tzinfo=UTC)
"""Event time of images from sources without dates."""

ACTIVE_S = 600.0
"""An unfinished ingest run counts as active this long after its last sign of life."""


def blob_key(image_id: str) -> str:
    """Where the bytes of an image are stored."""
    return f"blobs/{image_id[:2]}/{image_id}"


def interval_key(name: str, interval: str, digest: str, table: str = "manifest") -> str:
    """Where a table (manifest, statistics, quarantine, duplicates) of an accepted interval is stored."""
    return f"datasets/{name}/intervals/{interval}/{digest}/{table}.parquet"


def snapshot_key(snapshot_id: str) -> str:
    return f"snapshots/{snapshot_id}/manifest.parquet"


def keep_snapshot(storage: Storage, snapshot_id: str, manifest: Path) -> None:
    """Store a composed set's manifest by its id; nothing happens where it is there."""
    key = snapshot_key(snapshot_id)
    storage.refresh(key)  # gc spares what is in use
    if not storage.exists(key):
        copy = manifest.with_name("copy.parquet")  # the store may move what it is given
        shutil.copyfile(manifest, copy)
        storage.write_file(key, copy)
        copy.unlink(missing_ok=True)


@dataclass(frozen=True, kw_only=True)
class Part:
    """One accepted interval of a head."""

    digest: str
    run: str
    """The ingest run that put it there."""
    accepted_at: str
    """UTC, ISO 8601."""
    statistics: str = ""
    """Digest of the statistics, which other code may measure differently on the same images."""


@dataclass(frozen=True, kw_only=True)
class Head:
    """What a dataset is made of now."""

    version: int = 0
    moved_at: str = ""
    """UTC, ISO 8601; empty for a dataset that holds nothing yet."""
    parts: Mapping[str, Part] = field(default_factory=dict)

    @property
    def intervals(self) -> dict[str, str]:
        """Digest of each accepted interval's manifest."""
        return {interval: part.digest for interval, part in sorted(self.parts.items())}

    def until(self, as_of: str) -> dict[str, str]:
        """`intervals` up to and including a day (YYYY-MM-DD); the undated one always; empty takes all."""
        return {
            interval: digest
            for interval, digest in self.intervals.items()
            if not as_of or interval == STATIC or interval <= as_of
        }

    def digest(self, as_of: str = "") -> str:
        """Identity of the composed content, whatever order and runs it came from."""
        return digest_json(self.until(as_of))

    def statistics(self, as_of: str = "") -> str:
        """Identity of the statistics of the composed images."""
        return digest_json({interval: self.parts[interval].statistics for interval in self.until(as_of)})


@dataclass(frozen=True, kw_only=True)
class Parked:
    """An interval that validation turned away."""

    interval: str
    run: str
    reason: str
    parked_at: str
    examples: tuple[str, ...] = ()


def read_head(storage: Storage, name: str) -> Head:
    """The dataset's head; an empty one where nothing was accepted yet."""
    return _head(storage, name)[0]


def _head(storage: Storage, name: str) -> tuple[Head, str | None]:
    found = storage.read_versioned(f"datasets/{name}/head.json")
    if found is None:
        return Head(), None
    table = json.loads(found[0])
    parts = {interval: Part(**part) for interval, part in table["intervals"].items()}
    return Head(version=table["version"], moved_at=table["moved_at"], parts=parts), found[1]


def move_head(
    storage: Storage, name: str, interval: str, digest: str, run: str, *, statistics: str = ""
) -> tuple[Head, bool]:
    """Put an interval's manifest into the head, and whether the head's content differs from before this run.

    A run that is repeated after it moved the head, but before it could say so, still hears True.
    Raises PlatformError when others keep winning the race for minutes.
    """
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        head, version = _head(storage, name)
        present = head.parts.get(interval)
        if present is not None and (present.digest, present.statistics) == (digest, statistics):
            return head, present.run == run
        now = datetime.now(UTC).isoformat()
        part = Part(digest=digest, run=run, accepted_at=now, statistics=statistics)
        moved = Head(version=head.version + 1, moved_at=now, parts={**head.parts, interval: part})
        if storage.compare_and_swap(f"datasets/{name}/head.json", version, _encode(moved)):
            return moved, True
        time.sleep(random.uniform(0.01, 0.2))  # noqa: S311 (spreads the contenders)
    raise PlatformError(f"datasets/{name}/head.json: could not be moved within two minutes; is its storage writable?")


def _encode(head: Head) -> bytes:
    table = {
        "version": head.version,
        "moved_at": head.moved_at,
        "intervals": {interval: vars(part) for interval, part in sorted(head.parts.items())},
    }
    return json.dumps(table, indent=1).encode()


def names(storage: Storage) -> list[str]:
    """Datasets that something was ever accepted or parked of."""
    return sorted(storage.folders("datasets/")[0])


def park(storage: Storage, name: str, interval: str, *, run: str, reason: str, examples: Sequence[str] = ()) -> None:
    """List an interval that validation turned away; what the head holds of it stays."""
    table = {
        "interval": interval,
        "run": run,
        "reason": reason,
        "parked_at": datetime.now(UTC).isoformat(),
        "examples": list(examples),
    }
    storage.write(f"datasets/{name}/parked/{interval}.json", json.dumps(table, indent=1).encode())
    finish_activity(storage, name, run)


def unpark(storage: Storage, name: str, interval: str) -> None:
    storage.delete(f"datasets/{name}/parked/{interval}.json")


def list_parked(storage: Storage, name: str) -> list[Parked]:
    """Intervals that wait for better data, by name."""
    found = []
    for entry in storage.list(f"datasets/{name}/parked/"):
        table = json.loads(storage.read(entry.key))
        found.append(Parked(**{**table, "examples": tuple(table["examples"])}))
    return found


# --- ingest runs under way: one small object a run, removed at its end, so that asking stays cheap after years ------


def touch_activity(storage: Storage, name: str, run: str, *, lasts_s: float = ACTIVE_S) -> None:
    """A sign of life of an ingest run, or of a command that will start more of them."""
    at = datetime.now(UTC) - timedelta(seconds=ACTIVE_S - lasts_s)
    table = {"run": run, "at": at.isoformat()}
    storage.write(_activity_key(name, run), json.dumps(table).encode())


def finish_activity(storage: Storage, name: str, run: str) -> None:
    """The ingest run has accepted or parked its interval."""
    storage.delete(_activity_key(name, run))


def active_runs(storage: Storage, name: str, now: datetime) -> Iterator[tuple[str, float]]:
    """Ingest runs under way and the seconds since their last sign of life, at most ACTIVE_S."""
    for entry in storage.list(f"datasets/{name}/active/"):
        found = storage.read_versioned(entry.key)
        if found is None:  # it has just finished
            continue
        table = json.loads(found[0])
        age_s = (now - datetime.fromisoformat(table["at"])).total_seconds()
        if age_s <= ACTIVE_S:
            yield table["run"], age_s


def _activity_key(name: str, run: str) -> str:
    return f"datasets/{name}/active/{hashlib.sha256(run.encode()).hexdigest()[:32]}.json"
