"""Watching one service: ask whether it is ready, start it again when it has died."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field

from pipelines.local.process import ManagedProcess
from pipelines.local.services import Service
from pipelines.local.state import ProcessState, ProcessStatus

_ASK_S = 5.0
"""Between questions to a service that is ready; one that is not is asked at every look."""
_SILENT = 3
_STABLE_S = 60.0
_FIRST_BACKOFF_S = 0.25
_MAX_BACKOFF_S = 30.0


@dataclass
class Watched:
    """A service and what we know of it."""

    service: Service
    before_start: Callable[[], None] | None = None
    """Called before it is started again."""
    state: ProcessState = "starting"
    restarts: int = 0
    seconds: float | None = None
    """From its start until it was ready."""
    _failures: int = 0
    """Deaths in a row without a stable time between."""
    _silent: int = 0
    """Questions in a row without an answer. A busy machine is slow: nothing is killed for it."""
    _again_at: float = 0.0
    _asked_at: float = 0.0
    _answer: Future[bool] | None = field(default=None, repr=False)

    @property
    def process(self) -> ManagedProcess:
        return self.service.process

    def look(self, askers: Executor) -> None:
        """One look, from the thread that starts processes; questions are asked by `askers`, since they may take 2 s."""
        now = time.monotonic()
        if not self.process.alive():
            self._revive(now)
            return
        if self._failures and time.time() - self.process.started_at > _STABLE_S:
            self._failures = 0
        if self._answer is None:
            if self.state != "ready" or now - self._asked_at > _ASK_S:
                self._asked_at = now
                self._answer = askers.submit(self.service.ready)
        elif self._answer.done():
            self._hear(self._answer.result())
            self._answer = None

    def status(self) -> ProcessStatus:
        return ProcessStatus(
            name=self.process.name,
            pid=self.process.pid,
            state=self.state,
            port=self.process.port,
            restarts=self.restarts,
            seconds=None if self.seconds is None else round(self.seconds, 1),
            log=str(self.process.log_path),
        )

    def _hear(self, ready: bool) -> None:
        if ready:
            self._silent = 0
            self.state = "ready"
            if self.seconds is None:
                self.seconds = time.time() - self.process.started_at
        else:
            self._silent += 1
            if self.state == "ready" and self._silent >= _SILENT:
                self.state = "unresponsive"

    def _revive(self, now: float) -> None:
        """Start a dead process again, later at every death in a row."""
        if self.state != "restarting":
            self.state = "restarting"
            self._failures += 1
            self._answer, self.seconds = None, None
            self._again_at = now + min(_MAX_BACKOFF_S, _FIRST_BACKOFF_S * 2 ** (self._failures - 1))
            stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            sys.stderr.write(f"{stamp} supervisor: {self.process.name} ended with {self.process.returncode}\n")
        if now >= self._again_at:
            if self.before_start is not None:
                self.before_start()
            self.restarts += 1
            self.process.start()
            self.state = "starting"


def stop_all(ending: Sequence[Watched], began: float) -> None:
    """Wait until all have ended that were asked to at `began` (monotonic seconds), or are now; kill what does not."""
    deadline = began + max((one.service.stop_s for one in ending), default=0.0)
    for watched in ending:
        watched.process.stop(max(0.1, deadline - time.monotonic()))
        watched.state = "stopped"
