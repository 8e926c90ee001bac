"""The platform as the commands see it: up, down, what runs."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipelines.core.errors import DarkroomError, PlatformError, UserError
from pipelines.local import ports, postgres, resources, state
from pipelines.local.identity import credentials, identity
from pipelines.local.process import PLATFORM_MARK, kill, memory_bytes, rotate
from pipelines.local.state import PlatformState, ProcessStatus
from pipelines.local.sweep import sweep
from pipelines.settings import REPOSITORY, Settings

_KEEPER = Path(__file__).with_name("keeper.py")
_STUCK_AFTER = 3
"""Restarts before it was ever ready, after which `up` stops waiting for a process."""

Report = Callable[[ProcessStatus], None]


@dataclass(frozen=True, kw_only=True)
class Started:
    """What `up` did."""

    already: bool
    """It was up, with this code and these settings."""
    restarted: bool
    """It was up with other code or settings and was started again."""
    state: PlatformState


def up(
    settings: Settings, *, without: Sequence[str] = (), report: Report = lambda _: None, timeout_s: float = 300.0
) -> Started:
    """Start the platform, or what is left of it, and wait until every process does its work.

    `report` gets each process once, when it is ready. Raises UserError for what a person can mend (port, memory, disk)
    and PlatformError with the end of a log when something does not come up.
    """
    resources.check_disk(settings)
    state.folder(settings).mkdir(mode=0o700, parents=True, exist_ok=True)
    with _alone(settings):
        found = state.current(settings)
        # A platform with more in it than is asked for will do.
        fits = (
            found is not None
            and found.identity == identity(settings)
            and credentials() in ("", found.credentials)
            and set(found.without) <= set(without)
        )
        if found is not None and fits and found.phase == "ready":
            return Started(already=True, restarted=False, state=found)
        attach = found is not None and fits and found.phase == "starting"
        if state.keeper_pid(settings) is not None and not attach:
            down(settings)
        if not attach:
            _start_keeper(settings, without)
        now = _wait_ready(settings, report, time.monotonic() + timeout_s)
        return Started(already=False, restarted=found is not None and not attach, state=now)


def down(settings: Settings, *, timeout_s: float = 90.0) -> int:
    """End every process of this home, also what a crash left; the data stays. Returns how many a crash had left.

    Requests in flight are answered first: `timeout_s` or what that may take, whichever is longer, until all are killed.
    """
    found = state.current(settings)
    deadline = time.monotonic() + max(timeout_s, found.stop_s if found is not None else 0.0)
    while (pid := state.keeper_pid(settings)) is not None:
        if pid:
            kill(pid, signal.SIGTERM if time.monotonic() < deadline else signal.SIGKILL)
        if time.monotonic() > deadline + 10:
            raise PlatformError(f"the platform's keeper (pid {pid}) does not end")
        _wait_released(settings, 30.0 if time.monotonic() < deadline else 5.0)
    return sweep(settings)


def processes(settings: Settings) -> list[tuple[ProcessStatus, int]]:
    """Every process with its memory (PSS bytes, its children's included); empty while the platform is down."""
    keeper = state.keeper_pid(settings)
    found = state.current(settings)
    if keeper is None or found is None:
        return []
    own = [
        ProcessStatus(name="keeper", pid=keeper, state="ready", port=None),
        ProcessStatus(name="supervisor", pid=found.supervisor_pid, state=found.phase, port=None),
    ]
    listed = [*own, *found.processes]
    children = _children()
    roots = {one.pid for one in listed if one.pid is not None}
    return [(one, _memory(one.pid, children, roots - {one.pid})) for one in listed]


def _memory(pid: int | None, children: dict[int, list[int]], others: set[int]) -> int:
    """Of a process and its descendants that are not listed for themselves."""
    if pid is None:
        return 0
    below = [child for child in children.get(pid, []) if child not in others]
    return memory_bytes(pid) + sum(_memory(child, children, others) for child in below)


def _children() -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            found.setdefault(parent, []).append(int(folder.name))
    return found


@contextmanager
def _alone(settings: Settings) -> Iterator[None]:
    """Two `up` at once: the second waits for the first, and then finds the platform up."""
    with (state.folder(settings) / "up.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _start_keeper(settings: Settings, without: Sequence[str]) -> None:
    resources.check(settings)
    sweep(settings)
    # Looked at here as well, so that the commonest mistake is answered at once.
    ports.assign(settings, reservations := ports.Reservations())
    reservations.release()
    (state.folder(settings) / "platform.json").unlink(missing_ok=True)
    log_path = settings.home / "logs" / "supervisor.log"
    log_path.parent.mkdir(parents=True, exist_ok=True)
    rotate(log_path)
    command = [sys.executable, "-m", "pipelines.local.supervisor", *(f"--without={name}" for name in without)]
    with log_path.open("ab") as log:
        keeper = subprocess.Popen(
            [sys.executable, "-I", "-S", str(_KEEPER), str(state.lock_path(settings)), *command],
            env={**os.environ, PLATFORM_MARK: str(settings.home), "DARKROOM_HOME": str(settings.home)},
            cwd=REPOSITORY,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    deadline = time.monotonic() + 10
    while state.keeper_pid(settings) is None and keeper.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)


def _wait_ready(settings: Settings, report: Report, deadline: float) -> PlatformState:
    told: set[str] = set()
    while True:
        alive = state.keeper_pid(settings) is not None
        now = state.current(settings)
        if now is not None:
            for process in now.processes:
                if process.state == "ready" and process.name not in told:
                    told.add(process.name)
                    report(process)
            if now.phase == "ready":
                return now
            _raise_when_stuck(now)
        if not alive:
            raise _failure(settings, state.read(settings))
        if time.monotonic() > deadline:
            late = [one for one in now.processes if one.state != "ready"] if now else []
            logs = "\n".join(f"{one.name} ({one.state}): {one.log}" for one in late)
            raise PlatformError(f"the platform is not ready; still waiting for:\n{logs or 'the supervisor'}")
        time.sleep(0.05)


def _raise_when_stuck(now: PlatformState) -> None:
    for process in now.processes:
        if process.restarts >= _STUCK_AFTER and process.state != "ready" and process.seconds is None:
            raise PlatformError(
                f"{process.name} ends again and again; {process.log} ends with:\n{postgres.tail(Path(process.log))}"
            )


def _failure(settings: Settings, now: PlatformState | None) -> DarkroomError:
    if now is not None and now.phase == "failed":
        kind = UserError if now.exit_code == UserError.exit_code else PlatformError
        return kind(now.error)
    log = settings.home / "logs" / "supervisor.log"
    return PlatformError(f"the supervisor does not start; {log} ends with:\n{postgres.tail(log)}")


def _wait_released(settings: Settings, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while state.keeper_pid(settings) is not None and time.monotonic() < deadline:
        time.sleep(0.05)
