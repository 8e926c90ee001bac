"""Checkpoint files: whole or not at all, the last two, the good one of them, and when they are due."""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path
from typing import IO

import pytest
import torch

from pipelines.training.engine import checkpoints as module
from pipelines.training.engine.checkpoints import Checkpoints, opened

WEIGHTS = {"weight": torch.arange(12.0).view(3, 4)}


def _checkpoints(folder: Path, fingerprint: str = "this") -> Checkpoints:
    return Checkpoints(folder, fingerprint, 0)


def _saved(folder: Path, *steps: int, best_epoch: int = 0) -> None:
    checkpoints = _checkpoints(folder)
    for step in steps:
        checkpoints.save(step, {"step": step, "network": WEIGHTS}, best_epoch, WEIGHTS)


def _newest(folder: Path) -> int:
    return int(opened(_checkpoints(folder).newest()[0]).get("step", 0))


def test_the_last_two_are_kept_and_the_best_weights_once(tmp_path: Path) -> None:
    _saved(tmp_path, 1, 2, 3, best_epoch=1)
    names = sorted(path.name for path in (tmp_path / "this").iterdir())
    assert [name.rpartition("-")[0] for name in names] == ["best-0001", "step-00000002", "step-00000003"]
    state, best = _checkpoints(tmp_path).newest()
    assert torch.equal(opened(state)["network"]["weight"], WEIGHTS["weight"])
    assert torch.equal(opened(best)["weight"], WEIGHTS["weight"])


@pytest.mark.parametrize("damage", ["cut", "flipped", "emptied"])
@pytest.mark.parametrize("victim", ["step-00000003", "best-0002"])
def test_a_damaged_file_is_refused_by_name_and_the_one_before_is_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str, victim: str
) -> None:
    checkpoints = _checkpoints(tmp_path)
    for step, best_epoch in ((1, 1), (2, 1), (3, 2)):
        checkpoints.save(step, {"step": step}, best_epoch, {"weight": torch.full((2,), step)})
    (path,) = (tmp_path / "this").glob(f"{victim}-*")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes({"cut": data[: len(data) // 2], "flipped": data, "emptied": b""}[damage])
    with caplog.at_level(logging.WARNING):
        assert _newest(tmp_path) == 2
    assert path.name in caplog.text
    # What was taken up, and what follows it, is what stays.
    resumed = _checkpoints(tmp_path)
    resumed.newest()
    resumed.save(3, {"step": 3}, 2, {"weight": torch.full((2,), 3)})
    caplog.clear()
    assert _newest(tmp_path) == 3
    assert not caplog.records


def test_nothing_good_means_from_the_start(tmp_path: Path) -> None:
    assert _checkpoints(tmp_path / "missing").newest() == (b"", b"")
    (tmp_path / "this").mkdir()
    (tmp_path / "this" / "step-00000001-0123456789abcdef.pt").write_bytes(b"torn")
    assert _checkpoints(tmp_path).newest() == (b"", b"")


def test_another_trainings_checkpoints_are_neither_taken_up_nor_removed(tmp_path: Path) -> None:
    _saved(tmp_path, 1)
    other = _checkpoints(tmp_path, "another")
    assert other.newest() == (b"", b"")
    for step in (1, 2, 3):
        other.save(step, {"step": step}, 0, {})
    assert _newest(tmp_path) == 1


def test_half_written_files_of_killed_processes_are_swept(tmp_path: Path) -> None:
    (tmp_path / "this").mkdir()
    (tmp_path / "this" / "step-00000001.999999.partial").write_bytes(b"half")
    _saved(tmp_path, 1)
    assert [path.suffix for path in (tmp_path / "this").iterdir()] == [".pt"]


def test_a_full_disk_is_said_once_and_saving_goes_on_when_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints = _checkpoints(tmp_path)
    checkpoints.save(1, {"step": 1, "network": WEIGHTS}, 0, {})

    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(module, "_Hashing", _Full)
        for step in (2, 3):
            checkpoints.save(step, {"step": step, "network": WEIGHTS}, 0, {})
    assert len(caplog.records) == 1
    assert str(tmp_path / "this") in caplog.text
    assert "No space left" in caplog.text
    assert [path.suffix for path in (tmp_path / "this").iterdir()] == [".pt"]
    assert _newest(tmp_path) == 1
    checkpoints.save(4, {"step": 4}, 0, {})
    assert _newest(tmp_path) == 4


class _Full(module._Hashing):
    """A file on a disk that is full after some bytes."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(_Limited(file))  # type: ignore[arg-type]


class _Limited:
    def __init__(self, file: IO[bytes]) -> None:
        self.flush, self.fileno, self._file, self._room = file.flush, file.fileno, file, 100

    def write(self, data: bytes) -> int:
        self._room -= len(data)
        if self._room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self._file.write(data)


class _Harmful:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.mark),)


def test_a_checkpoint_executes_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    checkpoints = _checkpoints(tmp_path / "checkpoints")
    checkpoints.save(1, {"step": _Harmful(tmp_path / "executed")}, 0, {})
    with caplog.at_level(logging.WARNING):
        assert checkpoints.newest() == (b"", b"")
    assert "not a checkpoint" in caplog.text
    assert not (tmp_path / "executed").exists()


def test_saving_takes_less_than_a_hundredth_of_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now, takes = [1000.0], [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])

    def write(*_: object) -> str:
        now[0] += takes[0]
        return "step"

    monkeypatch.setattr(module, "_write", write)
    checkpoints = Checkpoints(tmp_path, "this", 30)
    now[0] += 1000  # data were read
    checkpoints.start(180_000_000)  # 0.6 s, as far as is known
    start = now[0]

    def saved_at(second: float) -> float:
        now[0] = start + second
        checkpoints.save(1, {}, 0, {})
        return now[0] - start

    def due(second: float, **what: bool) -> bool:
        now[0] = start + second
        return checkpoints.is_due(**what)

    assert not due(66, training_over=True)
    assert due(67, training_over=True)
    assert not due(99, epoch_over=True)
    assert due(101, epoch_over=True)
    takes[0] = 0.15
    assert saved_at(101) == pytest.approx(101.15)
    # The next one is reckoned by what this one took, and the whole is within the budget: 0.3 s of 50 s.
    assert not due(102, epoch_over=True)
    assert due(102.3, epoch_over=True)
    assert not due(130)
    assert due(131.2)
    takes[0] = 2
    assert saved_at(132) == pytest.approx(134)
    assert not due(433)  # 4.15 s would be affordable after 692 s, but ten intervals are the most that a kill may cost
    assert due(434.1)


def test_without_anything_to_go_by_the_first_waits_for_a_small_ones_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    checkpoints = Checkpoints(tmp_path, "this", 30)
    checkpoints.start(0)
    now[0] = 8.0
    assert not checkpoints.is_due(epoch_over=True)
    now[0] = 8.5
    assert checkpoints.is_due(epoch_over=True)
    assert not checkpoints.is_due()


def test_an_interval_of_zero_saves_every_step(tmp_path: Path) -> None:
    assert _checkpoints(tmp_path).is_due()
