"""What a process writes for the prediction log stays within its bounds, and survives it."""

from __future__ import annotations

import resource
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from logged_predictions import record, spooled

from bentos.kit import spool as kit_spool
from bentos.kit.spool import SpoolFull, SpoolWriter
from pipelines.core import prediction_spool
from pipelines.core.prediction_collection import collect
from pipelines.core.prediction_spool import SEGMENT_BYTES, RawImage, image_frame, parse, prediction_frame
from pipelines.core.predictions import read
from pipelines.core.storage import LocalStorage

MB = 1024 * 1024


def image(size: int) -> bytes:
    return image_frame(RawImage(sha256="ab" * 32, data=bytes(size)))


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_what_was_written_is_there_before_the_file_is_finished(tmp_path: Path) -> None:
    writer = SpoolWriter(tmp_path, 16 * MB)
    writer.write(prediction_frame(record()))
    (path,) = prediction_spool.files(tmp_path)
    assert len(parse(path.read_bytes()).records) == 1
    with prediction_spool.taken(path) as mine:
        assert not mine
    writer.finish()
    with prediction_spool.taken(path) as mine:
        assert mine


def test_a_file_is_finished_when_it_is_large_or_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = SpoolWriter(tmp_path, 64 * MB)
    assert writer.wait_s() is None
    for _ in range(3):
        writer.write(image(SEGMENT_BYTES // 2 - 1000))
    assert len(prediction_spool.files(tmp_path)) == 2
    writer.finish_if_due()
    assert 9 < (writer.wait_s() or 0) <= kit_spool.SEGMENT_S
    writer.finish()
    monkeypatch.setattr(kit_spool, "SEGMENT_S", 0.0)
    writer.write(image(10))
    writer.finish_if_due()
    assert writer.wait_s() is None


def test_the_oldest_is_given_up_and_counted_before_the_bound_is_passed(tmp_path: Path) -> None:
    """The collector is away, and what it has begun to collect is not touched."""
    batch = spooled(tmp_path / "batch-1", [record(99)])
    oldest = spooled(tmp_path, [record(0), record(1)])
    writer = SpoolWriter(tmp_path, 16 * MB)
    for _ in range(12):
        writer.write(image(2 * MB))
        assert size_of(tmp_path) <= 16 * MB
    assert batch.exists()
    assert not oldest.exists()
    assert writer.num_given_up == 2
    assert size_of(tmp_path) > 8 * MB


def test_processes_share_one_bound(tmp_path: Path) -> None:
    """What another still writes counts as a whole file, so that nobody writes past the bound later."""
    writers = [SpoolWriter(tmp_path, 16 * MB) for _ in range(4)]
    for writer in writers[:3]:
        writer.write(image(10))
    with pytest.raises(SpoolFull, match="not collected yet"):
        SpoolWriter(tmp_path, 15 * MB).write(image(10))
    writers[3].write(image(10))
    for writer in writers:
        writer.write(image(3 * MB))
    assert size_of(tmp_path) <= 16 * MB


def test_processes_that_make_room_at_once(tmp_path: Path) -> None:
    def work() -> None:
        writer = SpoolWriter(tmp_path, 32 * MB)
        for _ in range(20):
            writer.write(image(2 * MB))
        writer.finish()

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 16 * MB < size_of(tmp_path) <= 32 * MB


def test_every_record_is_collected_or_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes write beyond their bound while a collector takes what it can get."""
    monkeypatch.setattr(kit_spool, "SEGMENT_BYTES", 2000)
    writers = [SpoolWriter(tmp_path / "spool", 40_000) for _ in range(3)]
    refused: list[int] = []
    over = threading.Event()

    def write(writer: SpoolWriter, first: int) -> None:
        for number in range(first, first + 300):
            try:
                writer.write(prediction_frame(record(number)))
            except SpoolFull:
                refused.append(number)
        writer.finish()

    def work() -> None:
        while not over.is_set():
            collect(tmp_path / "spool", storage)

    storage = LocalStorage(tmp_path / "store")
    threads = [threading.Thread(target=write, args=(one, 1000 * place)) for place, one in enumerate(writers)]
    collector = threading.Thread(target=work)
    for thread in (collector, *threads):
        thread.start()
    for thread in threads:
        thread.join()
    over.set()
    collector.join()
    collect(tmp_path / "spool", storage)
    found = [one for batch in read(storage, columns=["request_id"]) for one in batch["request_id"].to_pylist()]
    assert len(set(found)) == len(found)
    assert len(found) + len(refused) + sum(one.num_given_up for one in writers) == 900


def test_nothing_is_written_where_the_disk_is_nearly_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kit_spool, "MIN_FREE_BYTES", 2**62)
    with pytest.raises(SpoolFull, match="MB are free on the disk"):
        SpoolWriter(tmp_path, 16 * MB).write(image(10))
    assert prediction_spool.files(tmp_path) == []


@contextmanager
def largest_file(num_bytes: int) -> Iterator[None]:
    """The kernel refuses to let any file grow beyond this, as it does on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_fills_in_the_middle_of_a_record(tmp_path: Path) -> None:
    frame = prediction_frame(record())
    writer = SpoolWriter(tmp_path, 16 * MB)
    writer.write(frame)
    with largest_file(len(frame) + 100), pytest.raises(OSError):
        writer.write(frame)
    writer.write(frame)  # there is room again: a file of its own
    writer.finish()
    found = [parse(path.read_bytes()) for path in prediction_spool.files(tmp_path)]
    assert [len(one.records) for one in found] == [1, 1]
    assert [one.lost_bytes for one in found] == [0, 0]


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError):
        SpoolWriter(tmp_path / "file" / "spool", 16 * MB).write(image(10))


def test_the_spool_is_nobody_elses_to_read(tmp_path: Path) -> None:
    SpoolWriter(tmp_path / "spool", 16 * MB).write(image(10))
    assert (tmp_path / "spool").stat().st_mode & 0o077 == 0
