"""The head moves by compare-and-swap; parked intervals and runs under way are listed."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pipelines.core import datasets
from pipelines.core.storage import LocalStorage


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path)


def test_a_dataset_begins_empty(storage: LocalStorage) -> None:
    head = datasets.read_head(storage, "set")
    assert (head.version, head.intervals, head.moved_at) == (0, {}, "")


def test_moving_the_head(storage: LocalStorage) -> None:
    head, changed = datasets.move_head(storage, "set", "2024-01-01", "a", "run/1")
    assert (head.version, changed) == (1, True)
    # The same run again, killed before it could report: it did change the head.
    assert datasets.move_head(storage, "set", "2024-01-01", "a", "run/1") == (head, True)
    # Another run with the same outcome did not.
    assert datasets.move_head(storage, "set", "2024-01-01", "a", "run/2") == (head, False)
    head, changed = datasets.move_head(storage, "set", "2024-01-01", "b", "run/2")
    assert (head.version, head.intervals, changed) == (2, {"2024-01-01": "b"}, True)
    assert datasets.read_head(storage, "set") == head


def test_no_interval_is_lost_in_a_race(storage: LocalStorage) -> None:
    days = [f"2024-01-{day:02d}" for day in range(1, 13)]
    threads = [threading.Thread(target=datasets.move_head, args=(storage, "set", day, day, day)) for day in days]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    head = datasets.read_head(storage, "set")
    assert head.intervals == {day: day for day in days}
    assert head.version == 12


def test_the_heads_digest_is_its_content_up_to_a_day(storage: LocalStorage) -> None:
    for name, order in (("one", "abc"), ("two", "cab")):
        for letter in order:
            datasets.move_head(storage, name, f"2024-01-0{'abc'.index(letter) + 1}", letter, f"run {name} {letter}")
        datasets.move_head(storage, name, "static", "s", "run")
    one, two = datasets.read_head(storage, "one"), datasets.read_head(storage, "two")
    assert one.digest() == two.digest()
    assert list(one.until("2024-01-02")) == ["2024-01-01", "2024-01-02", "static"]
    assert one.digest("2024-01-02") != one.digest()
    assert one.digest("2024-01-03") == one.digest()


def test_parking(storage: LocalStorage) -> None:
    datasets.touch_activity(storage, "set", "run/1")
    datasets.park(storage, "set", "2024-01-02", run="run/1", reason="too dark", examples=["a", "b"])
    (parked,) = datasets.list_parked(storage, "set")
    assert (parked.interval, parked.reason, parked.examples) == ("2024-01-02", "too dark", ("a", "b"))
    assert list(datasets.active_runs(storage, "set", datetime.now(UTC))) == []
    datasets.unpark(storage, "set", "2024-01-02")
    assert datasets.list_parked(storage, "set") == []


def test_runs_under_way(storage: LocalStorage) -> None:
    datasets.touch_activity(storage, "set", "run/1")
    datasets.touch_activity(storage, "set", "run/1")
    datasets.touch_activity(storage, "set", "run/2")
    datasets.touch_activity(storage, "other", "run/3")
    now = datetime.now(UTC)
    assert sorted(run for run, _ in datasets.active_runs(storage, "set", now)) == ["run/1", "run/2"]
    datasets.finish_activity(storage, "set", "run/1")
    assert [run for run, _ in datasets.active_runs(storage, "set", now)] == ["run/2"]
    later = now + timedelta(seconds=datasets.ACTIVE_S + 1)
    assert list(datasets.active_runs(storage, "set", later)) == []
