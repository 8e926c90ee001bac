"""The parent of the supervisor: starts it again when it is killed, and ends whatever lost its parent.

Run as a script, `python -I -S keeper.py LOCK COMMAND...`, with the standard library only: it is small, so that little
can go wrong in it. It is the subreaper of the platform (prctl(2)): a process whose parent ended becomes its child,
whatever session it is in, and is killed. One keeper a platform: it holds a lock on the file LOCK while it lives.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

GIVE_UP = 78
"""Exit status of a supervisor that must not be started again: it has written why."""
BUSY = 75
"""Exit status of a keeper that found another one."""
_PR_SET_CHILD_SUBREAPER = 36
_TICK_S = 0.5
_GRACE_S = 15.0
_MAX_FAILURES = 5
_LAUNCH = Path(__file__).with_name("launch.py")


class Keeper:
    """Keeps one command running."""

    def __init__(self, command: Sequence[str]) -> None:
        self._command = list(command)
        self._child: subprocess.Popen[bytes] | None = None
        self._stopping = False
        self._orphans: dict[int, float] = {}

    def stop(self, _signal: int, _frame: object) -> None:
        """Pass the wish on, once; the supervisor ends its processes in order."""
        self._stopping = True
        if self._child is not None:
            self._child.terminate()

    def run(self) -> int:
        """Keep the command running until told to stop, or until it gives up or fails too often at once."""
        failures = 0
        while not self._stopping:
            started = time.monotonic()
            status = self._run_once()
            self._end_orphans_now()
            if self._stopping or status in (0, GIVE_UP):
                return status
            failures = failures + 1 if time.monotonic() - started < 60 else 1
            _say(f"the supervisor ended with status {status}")
            if failures > _MAX_FAILURES:
                return 1
            deadline = time.monotonic() + 0.2 * 2**failures
            while time.monotonic() < deadline and not self._stopping:
                time.sleep(0.1)
        return 0

    def _run_once(self) -> int:
        # Should we be killed, it still ends its processes in order.
        options = {"parent": os.getpid(), "death_signal": int(signal.SIGTERM)}
        self._child = subprocess.Popen(
            [sys.executable, "-I", "-S", str(_LAUNCH), json.dumps(options), *self._command], start_new_session=True
        )
        while True:
            try:
                return self._child.wait(_TICK_S)
            except subprocess.TimeoutExpired:
                self._end_orphans()

    def _end_orphans(self) -> int:
        """Kill and reap children that we did not start; returns how many there still are.

        PostgreSQL has been told to shut down by its own parent-death signal and gets a while to do so.
        """
        now = time.monotonic()
        own = self._child.pid if self._child is not None else -1
        found = [pid for pid in _children() if pid != own]
        self._orphans = {pid: self._orphans.get(pid, now) for pid in found}
        for pid, since in self._orphans.items():
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                if _name(pid) != "postgres" or now - since > _GRACE_S:
                    os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, os.WNOHANG)
        return len(found)

    def _end_orphans_now(self) -> None:
        """After the supervisor's end: everything it ran is ours now, layer by layer."""
        deadline = time.monotonic() + 2 * _GRACE_S
        while self._end_orphans() and time.monotonic() < deadline:
            time.sleep(0.02)


def _children() -> list[int]:
    me = os.getpid()
    try:
        return [int(pid) for pid in Path(f"/proc/{me}/task/{me}/children").read_text().split()]
    except OSError:  # a kernel without CONFIG_PROC_CHILDREN
        found = []
        for folder in Path("/proc").iterdir():
            try:
                if folder.name.isdigit() and int((folder / "stat").read_text().rpartition(")")[2].split()[1]) == me:
                    found.append(int(folder.name))
            except OSError:
                continue
        return found


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def _say(text: str) -> None:
    sys.stderr.write(f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} keeper: {text}\n")


def main(lock: str, command: Sequence[str]) -> int:
    with open(lock, "a+") as file:
        # Who asks whether a keeper runs holds the lock for a moment; only another keeper holds it for long.
        deadline = time.monotonic() + 2.0
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    return BUSY
                time.sleep(0.01)
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        keeper = Keeper(command)
        signal.signal(signal.SIGTERM, keeper.stop)
        signal.signal(signal.SIGINT, keeper.stop)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        return keeper.run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
