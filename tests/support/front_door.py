"""A real Envoy before a real serving process, and what an attacker and a bystander do to it."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.client import HTTPConnection
from pathlib import Path

from example_packages import coloured
from served_bento import Served, serve
from serving_platform import wait_until

from pipelines.adapters.gateway import Backend, Endpoint, Gateway, View, envoy_argv, write_initial
from pipelines.core.model_package import ModelPackage
from pipelines.local import certificates
from pipelines.local.process import ManagedProcess, environment
from pipelines.settings import Settings

CLUSTER = "colours-v7-1"
"""What `served_bento` has its process vouch for."""
PATH = "/v1/models/colours/classify"


@dataclass(frozen=True, kw_only=True)
class Door:
    """Where to knock, and whose memory to watch."""

    settings: Settings
    envoy_pid: int
    served: Served

    @property
    def port(self) -> int:
        return self.settings.gateway_port

    @property
    def tls_port(self) -> int:
        return self.settings.port("gateway_tls")

    @property
    def pids(self) -> tuple[int, int]:
        return self.envoy_pid, self.served.pid


@contextlib.contextmanager
def front_door(settings: Settings, bento: Path, package: ModelPackage, **variables: str) -> Iterator[Door]:
    """Both, until the end of the block. `variables` are added to the serving process's environment."""
    certificates.ensure(settings)
    write_initial(settings)
    envoy = ManagedProcess("envoy", envoy_argv(settings), environment(settings), settings.home / "envoy.log")
    envoy.start()
    try:
        with serve(bento, package, **variables) as served:
            gateway = Gateway(settings)
            wait_until(gateway.ready)
            here = {CLUSTER: (Endpoint(port=served.port, grpc_port=served.grpc_port),)}
            gateway.apply(View(clusters=here))
            wait_until(lambda: gateway.healthy_ports(CLUSTER) == {served.port, served.grpc_port})
            backend = Backend(cluster=CLUSTER, version="7", weight=100)
            gateway.apply(View(clusters=here, routes={"colours": (backend,)}))
            assert envoy.pid is not None
            yield Door(settings=settings, envoy_pid=envoy.pid, served=served)
    finally:
        envoy.stop(5)


def raw_answer(port: int, request: bytes) -> bytes:
    """All that comes back until the other side closes."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(request)
        answer = b""
        while more := connection.recv(65_536):
            answer += more
        return answer


def resident_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise ProcessLookupError(pid)


@dataclass
class Watched:
    """The most memory that each process took beyond what it had at the start."""

    growth: dict[int, int] = field(default_factory=dict)

    @property
    def growth_mb(self) -> list[float]:
        return [round(number / 1e6, 1) for number in self.growth.values()]


@contextlib.contextmanager
def memory_of(pids: tuple[int, ...], interval_s: float = 0.05) -> Iterator[Watched]:
    """Sampled until the end of the block."""
    start = {pid: resident_bytes(pid) for pid in pids}
    watched, over = Watched(growth=dict.fromkeys(pids, 0)), threading.Event()

    def sample() -> None:
        while True:
            for pid in pids:
                watched.growth[pid] = max(watched.growth[pid], resident_bytes(pid) - start[pid])
            if over.wait(interval_s):
                return

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield watched
    finally:
        over.set()
        thread.join()


@dataclass
class Bystander:
    """A client that means well, one request after another on connections of its own."""

    port: int
    latencies_s: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    pause_s: float = 0.01
    _stop: threading.Event = field(default_factory=threading.Event)

    @contextlib.contextmanager
    def asking(self) -> Iterator[Bystander]:
        thread = threading.Thread(target=self._work)
        thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            thread.join()

    def _work(self) -> None:
        number = 0
        connection = HTTPConnection("127.0.0.1", self.port, timeout=30)
        while not self._stop.wait(self.pause_s):
            number += 1
            began = time.perf_counter()
            try:
                connection.request("POST", PATH, coloured("red", number % 50))
                response = connection.getresponse()
                body = response.read()
                if response.status != 200:
                    self.failures.append(f"{response.status} {body[:200]!r}")
            except OSError as error:
                self.failures.append(repr(error))
                connection.close()
            self.latencies_s.append(time.perf_counter() - began)
        connection.close()

    def p99_s(self) -> float:
        return sorted(self.latencies_s)[int(0.99 * len(self.latencies_s))]
