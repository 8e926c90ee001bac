"""A server under measurement: its processes, started and ended, and where it listens."""

from __future__ import annotations

import contextlib
import http.client
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench import process_tree
from pipelines.core.errors import PlatformError
from pipelines.local.process import PLATFORM_MARK, ManagedProcess

READY_S = 120.0
_LOOK_EVERY_S = 0.005


@dataclass(frozen=True, kw_only=True)
class Server:
    name: str
    port: int
    pids: Mapping[str, int]
    """Root of each part's process tree."""
    log: Path
    path: str = "/v1/classify"
    encoding: str = "raw"
    """How an image goes into a body: see `client.encoded`."""
    headers: Mapping[str, str] = field(default_factory=dict)

    def cpu_s(self) -> dict[str, float]:
        return {part: process_tree.cpu_s(pid) for part, pid in self.pids.items()}


@dataclass(frozen=True, kw_only=True)
class Command:
    """A server process to start."""

    name: str
    argv: Sequence[str]
    env: Mapping[str, str]
    cwd: Path
    log: Path
    port: int
    ready: str = "/readyz"
    """Path that answers 200 once requests are served."""


@contextlib.contextmanager
def started(command: Command) -> Iterator[tuple[int, float]]:
    """The process until the end of the block: its pid, and seconds until it was ready.

    Raises PlatformError with the end of its log where it ends first or takes longer than READY_S.
    """
    env = {PLATFORM_MARK: str(command.cwd), **command.env}
    process = ManagedProcess(command.name, command.argv, env, command.log, cwd=command.cwd)
    began = time.perf_counter()
    process.start()
    try:
        while not answers(command.port, command.ready):
            if not process.alive() or time.perf_counter() > began + READY_S:
                raise PlatformError(f"{command.name} was not ready: {_end_of(command.log)}")
            time.sleep(_LOOK_EVERY_S)
        seconds = time.perf_counter() - began
        assert process.pid is not None
        yield process.pid, seconds
    finally:
        process.stop(10)


def answers(port: int, path: str) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _end_of(log: Path) -> str:
    return log.read_text(errors="replace")[-2000:] if log.exists() else "it wrote nothing"
