"""A client process at a server, and what both took for it."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.serving.servers import Server
from pipelines.core.errors import PlatformError

_CLIENT = Path(__file__).with_name("client.py")


@dataclass(frozen=True, kw_only=True)
class Load:
    """What the client sends."""

    files: Sequence[Path]
    order: Sequence[int]
    """Places in `files`, one a request; begun again where `seconds` last longer."""
    connections: int
    seconds: float = 0.0
    """Closed loop: no request is begun later than this. 0: the whole order once."""
    arrivals: Sequence[float] | None = None
    """Open loop: seconds from the start at which each request is due; None for a closed loop."""
    headers: Mapping[str, str] = field(default_factory=dict)
    keep_answers: bool = False
    expected: tuple[int, ...] = (200,)
    """Any other status is a failure."""


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One run of a load."""

    requests: int
    wall_s: float
    server_cpu_s: Mapping[str, float]
    """User and system time by part of the server, such as `worker` and `envoy`."""
    client_cpu_s: float = 0.0
    times: Sequence[tuple[float, float]] = ()
    """When each request was due or sent, and when it was answered: seconds from the start."""
    codes: Sequence[int] = ()
    """The status of each of `times`."""
    answers: Mapping[int, str] = field(default_factory=dict)

    def cpu_ms(self, *parts: str) -> float:
        """CPU milliseconds a request, of all parts unless some are named."""
        return 1000 * sum(self.server_cpu_s[one] for one in parts or self.server_cpu_s) / self.requests

    @property
    def per_cpu_s(self) -> float:
        """Requests a CPU second of the whole server: the rate that contenders are compared by."""
        return 1000 / self.cpu_ms()

    @property
    def per_s(self) -> float:
        return self.requests / self.wall_s

    @property
    def client_cpu_ms(self) -> float:
        return 1000 * self.client_cpu_s / self.requests

    @property
    def latencies_ms(self) -> list[float]:
        return [1000 * (end - start) for start, end in self.times]

    def latencies_ms_of(self, status: int) -> list[float]:
        """Of the requests that got that status."""
        return [one for one, code in zip(self.latencies_ms, self.codes, strict=True) if code == status]


class Running:
    """A client at work."""

    def __init__(self, server: Server, load: Load) -> None:
        self._server = server
        self._before = server.cpu_s()
        job = {
            "port": server.port,
            "path": server.path,
            "encoding": server.encoding,
            "headers": {**server.headers, **load.headers},
            "files": [str(path) for path in load.files],
            "order": list(load.order),
            "connections": load.connections,
            "seconds": load.seconds,
            "arrivals": None if load.arrivals is None else list(load.arrivals),
            "keep_answers": load.keep_answers,
            "expected": load.expected,
        }
        # A file, since a pipe would hold up a client that has much to say and a parent that watches something else.
        self._outcome = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed by stop()
        self._process = subprocess.Popen(
            [sys.executable, "-I", str(_CLIENT)], stdin=subprocess.PIPE, stdout=self._outcome, text=True
        )
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(job))
        self._process.stdin.close()

    def ended(self, within_s: float) -> bool:
        """Whether it ends in that time."""
        try:
            self._process.wait(within_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    def finish(self) -> Measurement:
        """Wait for the end. Raises PlatformError where any answer was not expected, or none came."""
        if self._process.wait() != 0:
            raise PlatformError(f"the benchmark's client ended with status {self._process.returncode}; see above")
        after = self._server.cpu_s()
        self._outcome.seek(0)
        outcome: dict[str, Any] = json.load(self._outcome)
        if outcome["failure"] or not outcome["requests"]:
            why = outcome["failure"] or "no request was answered"
            raise PlatformError(f"{self._server.name}: {why}; statuses {outcome['statuses']}; log: {self._server.log}")
        return Measurement(
            requests=outcome["requests"],
            wall_s=outcome["wall_s"],
            server_cpu_s={part: after[part] - self._before[part] for part in after},
            client_cpu_s=outcome["cpu_s"],
            times=[(start, end) for start, end in outcome["times"]],
            codes=outcome["codes"],
            answers={int(number): text for number, text in outcome["answers"].items()},
        )

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
        self._outcome.close()


def send(server: Server, load: Load) -> Measurement:
    """A whole run. Raises what `Running.finish` raises."""
    running = Running(server, load)
    try:
        return running.finish()
    finally:
        running.stop()
