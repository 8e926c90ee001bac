"""Managed processes: own session, mark, log; none outlives its parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.core.processes import is_zombie, marked
from pipelines.local.process import PLATFORM_MARK, ManagedProcess, environment, memory_bytes, rotate, session_members
from pipelines.local.sweep import sweep
from pipelines.settings import REPOSITORY, Settings


def until(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition never came true"
        time.sleep(0.01)


def sleeper(settings: Settings, tmp_path: Path, script: str = "sleep 60") -> ManagedProcess:
    return ManagedProcess("sleeper", ["sh", "-c", script], environment(settings), tmp_path / "sleeper.log")


def test_a_process_leads_a_session_carries_the_mark_and_logs(home_settings: Settings, tmp_path: Path) -> None:
    process = sleeper(home_settings, tmp_path, "echo out; echo err >&2; sleep 60")
    process.start()
    try:
        assert process.pid is not None
        assert os.getsid(process.pid) == process.pid
        until(lambda: (tmp_path / "sleeper.log").read_text() == "out\nerr\n")
        assert process.pid in marked(PLATFORM_MARK, str(home_settings.home))
        assert memory_bytes(process.pid) > 0
    finally:
        process.stop()
    assert not process.alive()
    assert process.returncode == -signal.SIGTERM


def test_stop_ends_what_ignores_it_and_what_it_left_in_its_session(home_settings: Settings, tmp_path: Path) -> None:
    process = sleeper(home_settings, tmp_path, "trap '' TERM; sleep 60 & sleep 61")
    process.start()
    pid = process.pid
    assert pid is not None
    until(lambda: len(list(session_members(pid))) == 3)
    process.stop(timeout_s=0.2)
    until(lambda: not list(session_members(pid)))


def test_a_child_dies_with_a_killed_parent(home_settings: Settings, tmp_path: Path) -> None:
    program = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from pipelines import settings\n"
        "from pipelines.local.process import ManagedProcess, environment\n"
        "child = ManagedProcess('c', ['sleep', '60'], environment(settings.load()), Path(sys.argv[1]) / 'c.log')\n"
        "child.start()\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True, cwd=REPOSITORY
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert not is_zombie(child)
    parent.kill()
    parent.wait()
    until(lambda: is_zombie(child))


def test_an_environment_without_the_mark_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=PLATFORM_MARK):
        ManagedProcess("x", ["true"], {}, tmp_path / "x.log").start()


def test_a_program_that_does_not_exist_says_so_in_the_log(home_settings: Settings, tmp_path: Path) -> None:
    process = ManagedProcess("x", ["/no/such/program"], environment(home_settings), tmp_path / "x.log")
    process.start()
    assert process.wait(10) == 1
    assert "/no/such/program" in (tmp_path / "x.log").read_text()


def test_sweep_ends_marked_processes_wherever_they_went(home_settings: Settings) -> None:
    mark = {**os.environ, PLATFORM_MARK: str(home_settings.home)}
    stray = subprocess.Popen(["sleep", "60"], env=mark, start_new_session=True)
    other = subprocess.Popen(["sleep", "60"], env={**mark, PLATFORM_MARK: "/another/home"})
    try:
        until(lambda: stray.pid in marked(PLATFORM_MARK, str(home_settings.home)))
        assert sweep(home_settings) == 1
        assert stray.wait(5) == -signal.SIGKILL
        assert other.poll() is None
        assert sweep(home_settings) == 0
    finally:
        other.kill()
        other.wait()


def test_a_log_is_bounded_while_its_writer_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    with path.open("ab", buffering=0) as writer:
        writer.write(b"x" * 1000)
        rotate(path, limit_bytes=1000)
        assert path.stat().st_size == 1000
        writer.write(b"y")
        rotate(path, limit_bytes=1000)
        writer.write(b"z")
    assert path.read_bytes() == b"z"
    assert (tmp_path / "a.log.1").stat().st_size == 1001
