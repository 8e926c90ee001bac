"""The client, a program of its own: HTTP/1.1 over kept connections by hand, so that it takes little of the cores.

A job as JSON on stdin, an outcome as JSON on stdout; `bench.serving.load` writes the one and reads the other. Every
answer's status is looked at. Nothing but the standard library: it starts at once and is small.
"""

from __future__ import annotations

import asyncio
import base64
import json
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

_BOUNDARY = "darkroom-bench"
_HEAD_END = b"\r\n\r\n"
_TIMEOUT_S = 60.0
"""Without an answer for so long the server counts as hanging."""


def encoded(image: bytes, encoding: str) -> tuple[str, bytes]:
    """Content-Type and body: `raw` bytes, a `multipart` form, base64 in `json`, or `v2` (Open Inference Protocol)."""
    if encoding == "raw":
        return "image/jpeg", image
    if encoding in ("json", "v2"):
        text = base64.b64encode(image).decode()
        parameters = {"content_type": "base64"}
        tensor = {"name": "image", "shape": [1], "datatype": "BYTES", "parameters": parameters, "data": [text]}
        return "application/json", json.dumps(
            {"image_data": text} if encoding == "json" else {"inputs": [tensor]}
        ).encode()
    disposition = 'Content-Disposition: form-data; name="image"; filename="image.jpg"'
    head = f"--{_BOUNDARY}\r\n{disposition}\r\nContent-Type: image/jpeg\r\n\r\n".encode()
    return f"multipart/form-data; boundary={_BOUNDARY}", head + image + f"\r\n--{_BOUNDARY}--\r\n".encode()


def request(job: Mapping[str, Any], image: bytes) -> bytes:
    """Head and body in one piece."""
    kind, body = encoded(image, job["encoding"])
    headers = {"Host": f"127.0.0.1:{job['port']}", "Content-Type": kind, "Content-Length": str(len(body))}
    lines = [f"{name}: {value}\r\n" for name, value in {**headers, **job["headers"]}.items()]
    return f"POST {job['path']} HTTP/1.1\r\n{''.join(lines)}\r\n".encode() + body


class Connection(asyncio.Protocol):
    """One request at a time; says when it was answered."""

    def __init__(self, answered: Callable[[Connection, int, bytes], None], lost: Callable[[str], None]) -> None:
        self._answered, self._lost = answered, lost
        self._received = bytearray()
        self._transport: asyncio.Transport
        self.number = -1
        """Of the request under way; -1 for none."""
        self.since = 0.0
        self.timeout: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def send(self, data: bytes, number: int, since: float) -> None:
        self.number, self.since = number, since
        self._transport.write(data)

    def data_received(self, data: bytes) -> None:
        self._received += data
        end = self._received.find(_HEAD_END)
        if end < 0:
            return
        head = bytes(self._received[:end]).lower()
        length = head.partition(b"content-length:")[2].partition(b"\r\n")[0]
        if not length.strip().isdigit():
            self._lost(f"an answer without Content-Length: {head[:300]!r}")
            return
        whole = end + len(_HEAD_END) + int(length)
        if len(self._received) >= whole:
            body = bytes(self._received[end + len(_HEAD_END) : whole])
            self._received.clear()
            self._answered(self, int(head[9:12]), body)

    def connection_lost(self, error: Exception | None) -> None:
        if self.number >= 0:
            self._lost(f"the server closed a connection under a request: {error}")

    def close(self) -> None:
        self.number = -1
        self._transport.abort()


class Load:
    """A job at work: requests in the order given, at once as connections are free, or at their times."""

    def __init__(self, job: Mapping[str, Any], requests: Sequence[bytes]) -> None:
        self._job, self._requests = job, requests
        self._order: Sequence[int] = job["order"]
        self._arrivals: Sequence[float] | None = job["arrivals"]
        self._next = self._num_answered = 0
        self._end = float("inf")
        self._waiting: deque[tuple[int, float]] = deque()
        self._idle: list[Connection] = []
        self._times: list[tuple[float, float]] = []
        self._codes: list[int] = []
        self._answers: dict[int, str] = {}
        self._failure = ""
        self._started = 0.0

    async def run(self) -> dict[str, Any]:
        loop = asyncio.get_running_loop()
        self._loop, self._done = loop, loop.create_future()
        for _ in range(self._job["connections"]):
            _, connection = await loop.create_connection(
                lambda: Connection(self._answered, self._fail), "127.0.0.1", self._job["port"]
            )
            self._idle.append(connection)
        connections = list(self._idle)
        cpu, self._started = time.process_time(), loop.time()
        self._end = self._started + (self._job["seconds"] or float("inf"))
        watch = loop.create_task(self._watch())
        self._begin()
        await self._done
        wall, cpu = loop.time() - self._started, time.process_time() - cpu
        watch.cancel()
        for connection in connections:
            connection.close()
        return self._outcome(wall, cpu)

    def _begin(self) -> None:
        if self._arrivals is not None:
            self._schedule()
            return
        idle, self._idle = self._idle, []
        for connection in idle:
            self._send_next(connection)

    def _schedule(self) -> None:
        """The next arrival at its time, which is what its latency counts from: a slow server delays none."""
        assert self._arrivals is not None
        now = self._loop.time()
        while self._next < len(self._arrivals):
            due = self._started + self._arrivals[self._next]
            if due > now:
                self._loop.call_at(due, self._schedule)
                return
            image = self._order[self._next % len(self._order)]
            self._next += 1
            if self._idle:
                self._idle.pop().send(self._requests[image], image, due)
            else:
                self._waiting.append((image, due))

    def _send_next(self, connection: Connection) -> None:
        now = self._loop.time()
        limited = not self._job["seconds"] and self._next >= len(self._order)
        if limited or now >= self._end:
            connection.number = -1
            self._idle.append(connection)
            if len(self._idle) == self._job["connections"]:
                self._finish()
            return
        image = self._order[self._next % len(self._order)]
        self._next += 1
        connection.send(self._requests[image], image, now)

    def _answered(self, connection: Connection, status: int, body: bytes) -> None:
        now = self._loop.time()
        self._times.append((connection.since - self._started, now - self._started))
        self._codes.append(status)
        if status not in self._job["expected"] and not self._failure:
            self._failure = f"status {status}: {body[:300]!r}"
        if self._job["keep_answers"]:
            self._answers[connection.number] = body.decode()
        if self._arrivals is None:
            self._send_next(connection)
            return
        connection.number = -1
        if self._waiting:
            image, due = self._waiting.popleft()
            connection.send(self._requests[image], image, due)
        else:
            self._idle.append(connection)
        if len(self._times) == len(self._arrivals):
            self._finish()

    async def _watch(self) -> None:
        """Ends a run in which nothing is answered any more."""
        while True:
            known = len(self._times)
            await asyncio.sleep(_TIMEOUT_S)
            if len(self._times) == known:
                self._fail(f"no answer for {_TIMEOUT_S:.0f} s")

    def _fail(self, why: str) -> None:
        self._failure = self._failure or why
        self._finish()

    def _finish(self) -> None:
        if not self._done.done():
            self._done.set_result(None)

    def _outcome(self, wall_s: float, cpu_s: float) -> dict[str, Any]:
        return {
            "requests": len(self._times),
            "wall_s": wall_s,
            "cpu_s": cpu_s,
            "times": self._times,
            "codes": self._codes,
            "statuses": Counter(self._codes),
            "failure": self._failure,
            "answers": self._answers,
        }


def main() -> None:
    job = json.load(sys.stdin)
    requests = [request(job, Path(file).read_bytes()) for file in job["files"]]
    json.dump(asyncio.run(Load(job, requests).run()), sys.stdout)


if __name__ == "__main__":
    main()
