"""One child process of this machine's platform: start, watch, stop, with no way to outlive its parent.

Start children from threads that live as long as the children should: the kernel's parent-death signal fires when the
*thread* that forked ends.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipelines.core.errors import PlatformError
from pipelines.core.processes import is_zombie
from pipelines.settings import REPOSITORY, Settings

PLATFORM_MARK = "DARKROOM_PLATFORM"
"""Environment variable, set to the home, of every process of a platform: how its orphans are found."""

LOG_LIMIT_BYTES = 20_000_000
_LAUNCH = Path(__file__).with_name("launch.py")


@dataclass(frozen=True, kw_only=True)
class User:
    """Whom a child becomes when we are root."""

    uid: int
    gid: int
    paths: tuple[tuple[Path, int], ...]
    """What it must reach, with os.access modes."""


def environment(settings: Settings) -> dict[str, str]:
    """The environment every platform process starts from: ours, the mark, one thread per process, telemetry off."""
    return {
        **os.environ,
        "DARKROOM_HOME": str(settings.home),
        "DARKROOM_GATEWAY_PORT": str(settings.gateway_port),
        PLATFORM_MARK: str(settings.home),
        # Processes that change their title would overwrite the mark in /proc (setproctitle's own switch).
        "SPT_NOENV": "1",
        "PYTHONUNBUFFERED": "1",
        # Where it is set every step would compile our modules again: imports two to three times slower.
        "PYTHONDONTWRITEBYTECODE": "",
        # 0.7 s instead of 6-12 s for the same work on contended cores.
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "GX_ANALYTICS_ENABLED": "False",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        "BENTOML_DO_NOT_TRACK": "True",
        "FEAST_USAGE": "False",
    }


@dataclass
class ManagedProcess:
    """A process in a session of its own, with its output in a file.

    `env` is the whole environment: begin with `environment(settings)`, which carries the mark.
    """

    name: str
    argv: Sequence[str]
    env: Mapping[str, str]
    log_path: Path
    port: int | None = None
    cwd: Path | None = None
    user: User | None = None
    stop_signal: int = signal.SIGTERM
    death_signal: int = signal.SIGKILL
    """Sent by the kernel when the thread that called `start` ends."""
    started_at: float = field(default=0.0, init=False)
    """Seconds since the epoch of the last start."""
    _popen: subprocess.Popen[bytes] | None = field(default=None, init=False, repr=False)

    def start(self) -> None:
        """Start it, ending first what is left of an earlier start. Raises OSError when the log cannot be written."""
        if PLATFORM_MARK not in self.env:
            raise ValueError(f"{self.name}: the environment lacks {PLATFORM_MARK}; begin with environment(settings)")
        self._end_session()
        options: dict[str, object] = {"parent": os.getpid(), "death_signal": int(self.death_signal)}
        if self.user is not None:
            paths = [[str(path), mode] for path, mode in self.user.paths]
            options |= {"uid": self.user.uid, "gid": self.user.gid, "paths": paths}
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        rotate(self.log_path)
        with self.log_path.open("ab") as log:
            self._popen = subprocess.Popen(
                [sys.executable, "-I", "-S", str(_LAUNCH), json.dumps(options), *map(str, self.argv)],
                env=dict(self.env),
                cwd=self.cwd or REPOSITORY,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.started_at = time.time()

    @property
    def pid(self) -> int | None:
        """Its pid, or None while it does not run."""
        return self._popen.pid if self._popen is not None and self._popen.poll() is None else None

    @property
    def returncode(self) -> int | None:
        """Exit status of the last start, negative for a signal, or None while it runs or was never started."""
        return None if self._popen is None else self._popen.poll()

    def alive(self) -> bool:
        return self.pid is not None

    def wait(self, timeout_s: float) -> int:
        """Its exit status. Raises PlatformError when it still runs after `timeout_s`."""
        if self._popen is None:
            raise PlatformError(f"{self.name} was never started")
        try:
            return self._popen.wait(timeout_s)
        except subprocess.TimeoutExpired as error:
            raise PlatformError(f"{self.name} did not end within {timeout_s:.0f} s; see {self.log_path}") from error

    def signal(self) -> None:
        """Ask it to stop, without waiting."""
        if self._popen is not None and self._popen.poll() is None:
            self._popen.send_signal(self.stop_signal)

    def stop(self, timeout_s: float = 10.0) -> None:
        """Ask, wait, then kill whatever is left of its session."""
        if self._popen is not None:
            self.signal()
            try:
                self._popen.wait(timeout_s)
            except subprocess.TimeoutExpired:
                self._popen.kill()
            self._end_session()

    def _end_session(self) -> None:
        """Kill what the process left behind, and reap it."""
        if self._popen is None:
            return
        if self._popen.poll() is None:
            self._popen.kill()
        for pid in session_members(self._popen.pid):
            kill(pid)
        self._popen.wait()


def kill(pid: int, signal_number: int = signal.SIGKILL) -> None:
    """Signal a process that may be gone already."""
    try:
        os.kill(pid, signal_number)
    except ProcessLookupError:
        return


def session_members(session: int) -> Iterator[int]:
    """Living processes of a session, its leader included."""
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] not in "ZX":
            yield int(folder.name)


def wait_gone(pids: Sequence[int], timeout_s: float) -> list[int]:
    """Wait until processes that are not our children have ended; returns those that have not."""
    deadline = time.monotonic() + timeout_s
    left = list(pids)
    while (left := [pid for pid in left if not is_zombie(pid)]) and time.monotonic() < deadline:
        time.sleep(0.02)
    return left


def rotate(path: Path, limit_bytes: int = LOG_LIMIT_BYTES) -> None:
    """Bound a log that a running process appends to: keep the last part as `.1` and empty the file in place."""
    try:
        if path.stat().st_size <= limit_bytes:
            return
        shutil.copyfile(path, path.with_name(path.name + ".1"))
        os.truncate(path, 0)
    except FileNotFoundError:
        return


def memory_bytes(pid: int) -> int:
    """Proportional set size of one process, or its resident size where the kernel refuses; 0 when it is gone."""
    for name, key in (("smaps_rollup", "Pss:"), ("status", "VmRSS:")):
        try:
            for line in Path(f"/proc/{pid}/{name}").read_text().splitlines():
                if line.startswith(key):
                    return int(line.split()[1]) * 1024
        except OSError:
            continue
    return 0
