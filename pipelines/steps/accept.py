"""`accept`: an interval becomes part of its dataset."""

from __future__ import annotations

import shutil
from pathlib import Path

from pipelines.core import datasets, manifest
from pipelines.core.storage import Storage
from pipelines.core.values import Accepted

TABLES = ("manifest", "statistics", "quarantine", "duplicates")


def accept(storage: Storage, name: str, interval: str, run: str, assembled: Path, scratch: Path) -> Accepted:
    """Store the interval's tables, move the dataset's head to them, and take the interval off the parked list.

    Killed anywhere, it ends the same when it is run again: the tables are there before the head names them.
    """
    rows = manifest.read(assembled / "manifest.parquet")
    head = datasets.read_head(storage, name)
    if not rows.num_rows and interval not in head.parts:  # a day without images changes nothing
        datasets.finish_activity(storage, name, run)
        return Accepted(dataset=name, interval=interval, head_version=head.version, changed=False)
    digest = manifest.rows_digest(rows)
    for table in TABLES:
        copy = scratch / f"{table}.parquet"  # write_file may move what it is given
        shutil.copyfile(assembled / f"{table}.parquet", copy)
        storage.write_file(datasets.interval_key(name, interval, digest, table), copy)
        copy.unlink(missing_ok=True)
    statistics = manifest.rows_digest(manifest.read(assembled / "statistics.parquet"))
    head, changed = datasets.move_head(storage, name, interval, digest, run, statistics=statistics)
    datasets.unpark(storage, name, interval)
    datasets.finish_activity(storage, name, run)
    return Accepted(dataset=name, interval=interval, head_version=head.version, changed=changed)
