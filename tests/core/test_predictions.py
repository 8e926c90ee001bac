"""From the spool to Parquet and back: once, whatever happens on the way."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.dataset as ds
import pytest
from logged_predictions import DAY, record, spooled

from pipelines.core import prediction_collection, predictions
from pipelines.core.errors import IntegrityError
from pipelines.core.prediction_collection import Collected, collect
from pipelines.core.prediction_spool import FORMAT, RawImage, Record, prediction_frame
from pipelines.core.predictions import READ, Selection, newest, read
from pipelines.core.storage import LocalStorage, Storage, open_storage


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    return tmp_path / "spool"


@pytest.fixture(params=["folder", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Storage]:
    if request.param == "folder":
        yield LocalStorage(tmp_path / "store")
    else:
        endpoint = request.getfixturevalue("s3_endpoint")
        yield open_storage(f"s3://{endpoint.bucket()}/house", endpoint_url=endpoint.url)


@pytest.fixture
def folder(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path / "store")


def rows(storage: Storage, **selected: Any) -> list[dict[str, Any]]:
    return [row for batch in read(storage, Selection(**selected)) for row in batch.to_pylist()]


def ids(storage: Storage, **selected: Any) -> list[int]:
    return [int(row["request_id"].removeprefix("request-")) for row in rows(storage, **selected)]


def check(row: dict[str, Any], expected: Record) -> None:
    assert row.keys() == set(READ.names)
    assert row["at"] == datetime.fromtimestamp(expected.at, UTC)
    for name in set(READ.names) - {"at", "probabilities", "embedding"}:
        assert row[name] == getattr(expected, name)
    for name in ("probabilities", "embedding"):
        assert np.array_equal(np.array(row[name], np.float32), getattr(expected, name))


def test_what_was_spooled_is_read_from_the_store(spool: Path, storage: Storage) -> None:
    spooled(spool, map(record, range(3)))
    spooled(spool, map(record, range(3, 5)), rest=prediction_frame(record(9))[:-1])
    assert collect(spool, storage) == Collected(
        num_predictions=5, num_objects=1, lost_bytes=len(prediction_frame(record(9))) - 1
    )
    for row, number in zip(rows(storage), range(5), strict=True):
        check(row, record(number))
    assert [path.name for path in spool.iterdir()] == [".collector.lock"]


def test_a_model_and_a_day_have_a_folder_that_other_tools_read(spool: Path, folder: LocalStorage) -> None:
    midnight = datetime(2026, 3, 2, tzinfo=UTC) - timedelta(seconds=2)
    spooled(spool, [*(record(number, at=midnight) for number in range(4)), record(8, model="a/b=c", at=midnight)])
    assert collect(spool, folder).num_objects == 3
    assert sorted({entry.key.rpartition("/")[0] for entry in folder.list("predictions/")}) == [
        "predictions/model=a%2Fb%3Dc/date=2026-03-02",
        "predictions/model=colours/date=2026-03-01",
        "predictions/model=colours/date=2026-03-02",
    ]
    table = ds.dataset(folder.root / "predictions", partitioning="hive").to_table()
    assert sorted(table["model"].to_pylist()) == ["a/b=c", *["colours"] * 4]
    assert {row["model"] for row in rows(folder)} == {"a/b=c", "colours"}


def test_what_is_selected(spool: Path, folder: LocalStorage) -> None:
    for first in (0, 10):  # two objects of one day, and one of another day and package
        spooled(spool, map(record, range(first, first + 10)))
        collect(spool, folder)
    spooled(spool, [record(number, at=DAY + timedelta(days=1), digest="b" * 64) for number in range(20, 25)])
    spooled(spool, [record(30, model="digits")])
    collect(spool, folder)
    second = timedelta(seconds=1)
    assert ids(folder, model="colours") == list(range(25))
    assert ids(folder, model="colours", since=DAY + 8 * second, until=DAY + 12 * second) == [8, 9, 10, 11]
    assert ids(folder, since=DAY + timedelta(hours=1)) == list(range(20, 25))
    assert ids(folder, package_digest="bb") == list(range(20, 25))
    assert ids(folder, request_id="request-3") == [3]
    assert ids(folder, model="other") == []
    assert [row["request_id"] for row in newest(folder, Selection(), limit=7, columns=["at", "request_id"])] == [
        "request-19" if number == 19 else f"request-{number}" for number in (19, 30, 20, 21, 22, 23, 24)
    ]


def test_columns_that_are_not_asked_for_are_not_read(spool: Path, folder: LocalStorage) -> None:
    spooled(spool, [record()])
    collect(spool, folder)
    (batch,) = read(folder, columns=["embedding", "model"])
    assert batch.schema.names == ["embedding", "model"]


def test_a_streams_frames_are_found_by_its_connection(spool: Path, folder: LocalStorage) -> None:
    spooled(spool, [record(0), record(1)])
    collect(spool, folder)
    assert ids(folder, request_id="request") == []
    assert ids(folder, request_id="request-1") == [1]


def test_raw_images_are_stored_once_by_their_digest(spool: Path, storage: Storage) -> None:
    images = [RawImage(sha256=f"{number:064x}", data=b"image %d" % number) for number in (1, 2)]
    spooled(spool, [record(1), record(2)], images)
    spooled(spool, [record(1)], images[:1])
    assert collect(spool, storage).num_images == 2
    assert [storage.read(predictions.image_key(row["image_sha256"])) for row in rows(storage)] == [
        *(b"image 1", b"image 1", b"image 2")
    ]


# --- once, whatever happens ----------------------------------------------------------------------------------------


class Killed(BaseException):
    pass


@pytest.mark.parametrize("step", ["objects", "done", "deleted"])
def test_a_kill_anywhere_leaves_every_prediction_once(
    spool: Path, folder: LocalStorage, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the objects' writes, before the batch is let go, in the middle of its deletion."""
    midnight = datetime(2026, 3, 2, tzinfo=UTC) - timedelta(seconds=2)
    spooled(spool, [record(number, at=midnight) for number in range(4)])

    def killed_after(work: Any, times: int) -> Any:
        calls = iter(range(times))

        def once(*given: Any, **named: Any) -> Any:
            if next(calls, None) is None:
                raise Killed
            return work(*given, **named)

        return once

    def not_deleted(_: Path) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        match step:
            case "objects":
                patch.setattr(folder, "write", killed_after(folder.write, 1))
            case "done":
                patch.setattr(Path, "with_name", killed_after(Path.with_name, 0))
            case "deleted":
                patch.setattr(prediction_collection.shutil, "rmtree", not_deleted)
        with pytest.raises(Killed):
            collect(spool, folder)
    spooled(spool, [record(5)])  # must not change what the first batch becomes
    collect(spool, folder)
    collect(spool, folder)
    assert sorted(ids(folder)) == [0, 1, 2, 3, 5]
    assert [path.name for path in spool.iterdir()] == [".collector.lock"]


def test_many_collectors_and_writers_at_once(spool: Path, folder: LocalStorage) -> None:
    def write(first: int) -> None:
        for number in range(first, first + 20):
            spooled(spool, [record(number)])

    def work() -> None:
        while not over.is_set():
            collect(spool, folder)

    spool.mkdir()
    over = threading.Event()
    collectors = [threading.Thread(target=work) for _ in range(3)]
    writers = [threading.Thread(target=write, args=(first,)) for first in (0, 100, 200)]
    for thread in (*collectors, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    over.set()
    for thread in collectors:
        thread.join()
    collect(spool, folder)
    assert sorted(ids(folder)) == [*range(20), *range(100, 120), *range(200, 220)]


_COLLECT = """
from pathlib import Path
from pipelines.core.prediction_collection import collect
from pipelines.core.storage import LocalStorage
print(flush=True)
collect(Path({spool!r}), LocalStorage(Path({store!r})))
"""


def test_collectors_that_are_killed_at_any_moment(spool: Path, folder: LocalStorage) -> None:
    program = _COLLECT.format(spool=str(spool), store=str(folder.root))
    for number in range(4):
        spooled(spool, map(record, range(100 * number, 100 * number + 100)))
        process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        with process:
            if number:  # the first is left alone; the others have a little time
                threading.Event().wait(0.004 * number)
                process.kill()
    collect(spool, folder)
    assert sorted(ids(folder)) == list(range(400))


def test_a_store_that_is_away_loses_nothing(spool: Path, folder: LocalStorage) -> None:
    spooled(spool, [record(0)])
    folder.root.write_text("")
    with pytest.raises(OSError):
        collect(spool, folder)
    spooled(spool, [record(1)])
    folder.root.unlink()
    assert collect(spool, folder).num_predictions == 2
    assert sorted(ids(folder)) == [0, 1]


def test_files_that_are_still_written_are_left(spool: Path, folder: LocalStorage) -> None:
    spool.mkdir()
    file, _ = prediction_collection.prediction_spool.create(spool)
    os.write(file, prediction_frame(record(0)))
    assert collect(spool, folder) == Collected()
    os.close(file)
    assert collect(spool, folder).num_predictions == 1


def test_a_file_of_another_version_keeps_nothing_else_back(spool: Path, folder: LocalStorage) -> None:
    other = spooled(spool, [])
    other.write_bytes(FORMAT.replace(b"1", b"2"))
    spooled(spool, [record()])
    assert collect(spool, folder) == Collected(num_predictions=1, num_objects=1, num_unreadable=1)
    assert other.exists()


def test_no_spool_is_nothing_to_collect(spool: Path, folder: LocalStorage) -> None:
    assert collect(spool, folder) == Collected()


def test_an_object_of_a_later_version_is_refused(
    spool: Path, folder: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    spooled(spool, [record()])
    collect(spool, folder)
    monkeypatch.setattr(predictions, "SCHEMA_VERSION", "0")
    with pytest.raises(IntegrityError, match=r"date=2026-03-01.*version 1, where this code reads 0"):
        rows(folder)


# --- retention -----------------------------------------------------------------------------------------------------


def test_what_expires(spool: Path, folder: LocalStorage) -> None:
    spooled(spool, [record(number, at=DAY + timedelta(days=number)) for number in range(4)])
    collect(spool, folder)
    folder.write_new(predictions.image_key("ab" * 32), b"old")
    folder.write_new(predictions.image_key("cd" * 32), b"young")
    old = DAY.timestamp()
    os.utime(folder.root / predictions.image_key("ab" * 32), (old, old))
    kept = predictions.first_day_kept(90, DAY + timedelta(days=92))
    assert kept == date(2026, 3, 3)
    for entry in list(predictions.expired(folder, kept)):
        folder.delete(entry.key)
    assert ids(folder) == [2, 3]
    assert [entry.key for entry in folder.list("prediction_images/")] == [predictions.image_key("cd" * 32)]
