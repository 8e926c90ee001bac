"""Worker processes: order, errors, crashes, and the end of their parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import worker_functions
from worker_functions import start

from pipelines.core import workers as module
from pipelines.core.errors import PlatformError
from pipelines.core.processes import is_zombie
from pipelines.core.workers import Workers


def crashed(item: int) -> int:
    return -item


def workers(**options: object) -> Workers[int, int]:
    return Workers(start, (10,), crashed, 2)


def test_answers_come_in_order() -> None:
    chunks = [[i, i + 1] for i in range(0, 40, 2)]
    assert list(workers().map(chunks)) == [[10 * i, 10 * (i + 1)] for i in range(0, 40, 2)]


def test_an_exception_is_the_callers() -> None:
    with pytest.raises(ValueError, match="seven"):
        list(workers().map([[1], [777]]))


def test_an_item_that_ends_its_worker_is_found_and_the_others_are_answered() -> None:
    chunks = [[1, 2, 3], [4, 999, 5, 6], [7, 8]]
    assert list(workers().map(chunks)) == [[10, 20, 30], [40, -999, 50, 60], [70, 80]]


def test_too_many_crashes_blame_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_KILLERS", 1)
    with pytest.raises(PlatformError, match="too little memory"):
        list(workers().map([[999] for _ in range(3)]))


def test_workers_die_with_their_parent(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(
        "import sys, os\n"
        f"sys.path[:0] = [{str(Path(worker_functions.__file__).parent)!r}]\n"
        "from worker_functions import start\n"
        "from pipelines.core.workers import Workers\n"
        "if __name__ == '__main__':\n"
        f"    list(Workers(start, ({str(tmp_path)!r},), None, 2).map([['pid'], ['pid']]))\n"
    )
    parent = subprocess.Popen([sys.executable, str(script)])
    try:
        pids = wait_for(lambda: [int(path.name) for path in tmp_path.glob("[0-9]*")])
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait()
        wait_for(lambda: all(is_zombie(pid) for pid in pids))
    finally:
        parent.kill()
        parent.wait()


def wait_for(condition: Callable[[], object], timeout_s: float = 30) -> list[int]:
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found  # type: ignore[return-value]


def test_nothing_to_do() -> None:
    empty: Sequence[Sequence[int]] = []
    assert list(workers().map(empty)) == []
