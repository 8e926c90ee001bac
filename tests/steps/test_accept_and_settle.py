"""`accept` makes an interval part of its dataset; `settle` waits until nothing more comes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import cast

import pyarrow as pa
import pytest

from pipelines.cli.wiring import STEPS
from pipelines.core import datasets, manifest
from pipelines.core.recipe import Recipe
from pipelines.core.runs import RunRequest
from pipelines.core.storage import LocalStorage
from pipelines.settings import Settings
from pipelines.steps.accept import TABLES, accept
from pipelines.steps.settle import POLL_S, settle

NOW = datetime.now(UTC)


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path / "store")


def assembled(folder: Path, *labels: str) -> Path:
    folder.mkdir()
    rows = [
        {"image_id": f"{i:064d}", "label": label, "event_timestamp": NOW, "source_uri": f"/in/{i}"}
        for i, label in enumerate(labels)
    ]
    schemas = (manifest.STATISTICS, manifest.QUARANTINE, manifest.DUPLICATES)
    manifest.write(folder / "manifest.parquet", pa.Table.from_pylist(rows, schema=manifest.MANIFEST))
    for name, schema in zip(TABLES[1:], schemas, strict=True):
        manifest.write(folder / f"{name}.parquet", manifest.empty(schema))
    return folder


def test_accepting_stores_the_tables_and_moves_the_head(storage: LocalStorage, tmp_path: Path) -> None:
    folder = assembled(tmp_path / "a", "cat", "dog")
    datasets.touch_activity(storage, "set", "run/1")
    datasets.park(storage, "set", "static", run="run/0", reason="was bad")
    (tmp_path / "scratch").mkdir()
    first = accept(storage, "set", "static", "run/1", folder, tmp_path / "scratch")
    assert (first.changed, first.head_version) == (True, 1)
    digest = datasets.read_head(storage, "set").intervals["static"]
    for table in TABLES:
        stored = storage.local(datasets.interval_key("set", "static", digest, table), tmp_path)
        assert stored.read_bytes() == (folder / f"{table}.parquet").read_bytes()
    assert datasets.list_parked(storage, "set") == []
    assert not list((tmp_path / "scratch").iterdir())
    assert list(datasets.active_runs(storage, "set", NOW)) == []
    assert accept(storage, "set", "static", "run/1", folder, tmp_path / "scratch") == first
    assert not accept(storage, "set", "static", "run/2", folder, tmp_path / "scratch").changed


def test_an_interval_that_runs_again_replaces_its_part(storage: LocalStorage, tmp_path: Path) -> None:
    accept(storage, "set", "2024-01-01", "run/1", assembled(tmp_path / "a", "cat", "dog"), tmp_path)
    again = accept(storage, "set", "2024-01-01", "run/2", assembled(tmp_path / "b", "cat"), tmp_path)
    assert (again.changed, again.head_version) == (True, 2)
    emptied = accept(storage, "set", "2024-01-01", "run/3", assembled(tmp_path / "c"), tmp_path)
    assert emptied.changed


def test_statistics_that_were_measured_anew_move_the_head(storage: LocalStorage, tmp_path: Path) -> None:
    folder = assembled(tmp_path / "a", "cat")
    accept(storage, "set", "static", "run/1", folder, tmp_path)
    before = datasets.read_head(storage, "set")
    row = {**dict.fromkeys(manifest.STATISTICS.names), "image_id": "0" * 64}
    manifest.write(folder / "statistics.parquet", pa.Table.from_pylist([row], schema=manifest.STATISTICS))
    assert accept(storage, "set", "static", "run/2", folder, tmp_path).changed
    after = datasets.read_head(storage, "set")
    assert after.digest() == before.digest()  # the images are the same: so is the snapshot
    assert after.statistics() != before.statistics()
    request = RunRequest(recipe=Recipe(name="set"))
    world = STEPS["training_set"].world
    assert world is not None
    assert world(cast("Settings", None), storage, request) == after.statistics()


def test_a_day_without_images_changes_nothing(storage: LocalStorage, tmp_path: Path) -> None:
    found = accept(storage, "set", "2024-01-01", "run/1", assembled(tmp_path / "a"), tmp_path)
    assert (found.changed, found.head_version) == (False, 0)


def wait(storage: LocalStorage, after_s: float = 0.0, cool_down_s: float = 30.0) -> float:
    return settle(storage, "set", cool_down_s, datetime.now(UTC) + timedelta(seconds=after_s)).wait_s


def test_settling(storage: LocalStorage) -> None:
    assert wait(storage) == 0
    datasets.move_head(storage, "set", "static", "d", "run/1")
    assert 29 < wait(storage) <= 30
    assert 9 < wait(storage, after_s=20) <= 10
    assert wait(storage, after_s=31) == 0
    assert wait(storage, cool_down_s=0) == 0


def test_a_run_under_way_is_waited_for_unless_it_died(storage: LocalStorage) -> None:
    datasets.move_head(storage, "set", "static", "d", "run/1")
    datasets.touch_activity(storage, "set", "run/2")
    assert wait(storage, after_s=100) == 30
    assert wait(storage, after_s=100, cool_down_s=0) == POLL_S
    assert wait(storage, after_s=datasets.ACTIVE_S + 5) == 0
    datasets.finish_activity(storage, "set", "run/2")
    assert wait(storage, after_s=100) == 0
