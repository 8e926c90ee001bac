"""The keeper: starts a killed command again, ends orphans in any session, is alone, knows when to give up."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipelines.core.processes import is_zombie
from pipelines.local import keeper as keeper_module
from pipelines.local import state
from pipelines.local.process import wait_gone
from pipelines.settings import Settings

# Writes its pid and that of a grandchild that left the session, then waits.
COMMAND = "(setsid sleep 60 & echo $! >> {0}/grandchildren); echo $$ >> {0}/commands; exec sleep 61"


@contextmanager
def keeper(settings: Settings, *command: str) -> Iterator[subprocess.Popen[bytes]]:
    state.folder(settings).mkdir(exist_ok=True)
    script = str(Path(keeper_module.__file__))
    process = subprocess.Popen([sys.executable, "-I", "-S", script, str(state.lock_path(settings)), *command])
    try:
        yield process
    finally:
        process.terminate()
        process.wait(20)


def pids(path: Path, count: int) -> list[int]:
    """Wait for that many lines."""
    while len(found := path.read_text().split() if path.exists() else []) < count:
        os.sched_yield()
    return [int(one) for one in found]


def test_a_killed_command_is_started_again_without_its_orphans(home_settings: Settings, tmp_path: Path) -> None:
    with keeper(home_settings, "sh", "-c", COMMAND.format(tmp_path)) as process:
        (command,) = pids(tmp_path / "commands", 1)
        (grandchild,) = pids(tmp_path / "grandchildren", 1)
        assert state.keeper_pid(home_settings) == process.pid
        # Its parent, a subshell, has ended: it is an orphan already, in a session of its own.
        assert not wait_gone([grandchild], 5)
        os.kill(command, signal.SIGKILL)
        second = pids(tmp_path / "commands", 2)[1]
        assert second != command
    assert is_zombie(second)
    assert state.keeper_pid(home_settings) is None


def test_a_killed_keeper_takes_its_command_along(home_settings: Settings, tmp_path: Path) -> None:
    with keeper(home_settings, "sh", "-c", COMMAND.format(tmp_path)) as process:
        (command,) = pids(tmp_path / "commands", 1)
        process.kill()
        assert not wait_gone([command], 5)


def test_one_keeper_a_home(home_settings: Settings) -> None:
    with keeper(home_settings, "sleep", "60"):
        while state.keeper_pid(home_settings) is None:
            os.sched_yield()
        with keeper(home_settings, "true") as second:
            assert second.wait(10) == keeper_module.BUSY


def test_a_command_that_gives_up_is_left_alone(home_settings: Settings, tmp_path: Path) -> None:
    script = f"echo once >> {tmp_path}/starts; exit {keeper_module.GIVE_UP}"
    with keeper(home_settings, "sh", "-c", script) as process:
        assert process.wait(10) == keeper_module.GIVE_UP
    assert (tmp_path / "starts").read_text() == "once\n"
