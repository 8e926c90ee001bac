"""The processes of one deployment: started, watched, started again when they die."""

from __future__ import annotations

import http.client
import json
import math
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pipelines.adapters.gateway import Endpoint
from pipelines.core.cores import num_cores
from pipelines.core.deployments import Deployment
from pipelines.core.model_package import ModelPackage, load
from pipelines.local import access, predictions
from pipelines.local.ports import free_port
from pipelines.local.process import ManagedProcess
from pipelines.local.serving.environment import serving_environment
from pipelines.local.state import ProcessStatus
from pipelines.settings import Settings

MAX_BACKOFF_S = 10.0
STABLE_S = 30.0
UNHEALTHY_S = 30.0
"""A process that the gateway has not found healthy for so long is ended, and so started again."""
_HUNG_S = 10.0
"""What such a one has to end by itself: nobody has had an answer of it for longer than requests may take."""
CLOSE_S = 15.0
"""What a process may take to close after its last request: what it logged and traced takes 5 s each at most."""
PORT_TAKEN = 75
"""Exit status of `bentos.kit.worker` when somebody was quicker: not the deployment's fault, so it is tried again."""


@dataclass
class Worker:
    """One serving process and how it fares."""

    process: ManagedProcess
    port: int
    grpc_port: int
    started_at: float
    """Monotonic seconds."""
    log_offset: int
    ready: bool = False
    healthy_at: float = 0.0
    seconds: float | None = None
    """From its start until it was ready."""


@dataclass
class Slot:
    """The place of one process; its worker changes when one dies."""

    worker: Worker | None = None
    deaths_in_a_row: int = 0
    restarts: int = 0
    again_at: float = 0.0


@dataclass
class Fleet:
    """`tick` belongs to the thread that lives as long as the processes should; the rest may be called from any."""

    settings: Settings
    deployment: Deployment
    folder: Path
    """The bento."""
    keep: bool = False
    """Start dead processes again. A deployment that is still to prove itself gets no second try."""
    attached: bool = False
    """The gateway knows its cluster."""
    draining: bool = False
    closed: bool = False
    slots: list[Slot] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def __post_init__(self) -> None:
        self.slots = [Slot() for _ in range(self.deployment.spec.workers)]

    @property
    def model(self) -> str:
        return self.deployment.build.model

    @property
    def cluster(self) -> str:
        build = self.deployment.build
        return f"{build.model}-v{build.version}-{self.deployment.id}"

    @property
    def log(self) -> Path:
        return self.settings.home / "logs" / f"bento-{self.model}.log"

    @property
    def drain_s(self) -> int:
        """What each process has for the requests in its hands, by all protocols together, when it is to end."""
        return max(1, math.ceil(self.deployment.spec.drain_timeout_s))

    def package(self) -> ModelPackage:
        """The package inside the bento; the processes themselves verify it."""
        return load(self.folder / "src" / "model", verify=False)

    def tick(self) -> None:
        """Start what is missing, see who became ready."""
        with self._lock:
            for slot in self.slots if not self.closed else ():
                worker = slot.worker
                if worker is None or not worker.process.alive():
                    self._revive(slot)
                elif not worker.ready:
                    self._look_at(worker)

    def _revive(self, slot: Slot) -> None:
        now = time.monotonic()
        if slot.worker is not None:
            if not self.keep and slot.worker.process.returncode != PORT_TAKEN:
                return
            if slot.again_at == 0.0:
                stable = now - slot.worker.started_at > STABLE_S
                slot.deaths_in_a_row = 1 if stable else slot.deaths_in_a_row + 1
                slot.again_at = now + min(MAX_BACKOFF_S, 0.05 * 4 ** (slot.deaths_in_a_row - 1))
                slot.worker.ready = False
            if now < slot.again_at:
                return
            slot.restarts += 1
        slot.again_at = 0.0
        slot.worker = self._start()

    def _start(self) -> Worker:
        # A new port every time: the old one may be anybody's by now.
        port, grpc_port = free_port(), free_port()
        process = ManagedProcess(
            f"bento-{self.cluster}",
            [
                *(sys.executable, "-m", "bentos.kit.worker", str(self.folder)),
                *("--port", str(port), "--grpc-port", str(grpc_port), "--drain-timeout", str(self.drain_s)),
            ],
            self._environment(),
            self.log,
            port=port,
            cwd=self.folder / "src",
        )
        offset = self.log.stat().st_size if self.log.exists() else 0
        process.start()
        return Worker(process=process, port=port, grpc_port=grpc_port, started_at=time.monotonic(), log_offset=offset)

    def _environment(self) -> dict[str, str]:
        spec = self.deployment.spec
        return {
            # The bento's own sources, before the clone's.
            **serving_environment(self.settings, cluster=self.cluster, sources=self.folder / "src"),
            # Beside the bento's sources, so that they go when it goes.
            "DARKROOM_WEIGHTS": str(self.folder / "weights"),
            "DARKROOM_THREADS": str(spec.threads),
            # All processes of the deployment together have one batch a core under way.
            "DARKROOM_CONCURRENCY": str(max(1, num_cores() // (spec.workers * spec.threads))),
            "DARKROOM_TOP_K": str(spec.top_k),
            **access.environment(self.settings, spec.workers),
            **predictions.environment(self.settings),
        }

    def _look_at(self, worker: Worker) -> None:
        if vouches_for(worker.port, self.cluster):
            now = time.monotonic()
            worker.ready, worker.healthy_at, worker.seconds = True, now, now - worker.started_at

    def judge(self, healthy_ports: set[int]) -> None:
        """Learn which ports the gateway finds healthy; end processes that hang."""
        now = time.monotonic()
        for worker in self._ready():
            if worker.port in healthy_ports:
                worker.healthy_at = now
            elif now - worker.healthy_at > UNHEALTHY_S:
                worker.process.stop(_HUNG_S)

    def _ready(self) -> Iterator[Worker]:
        for slot in self.slots:
            if slot.worker is not None and slot.worker.ready and slot.worker.process.alive():
                yield slot.worker

    def endpoints(self) -> tuple[Endpoint, ...]:
        """Of the processes that are ready, by port."""
        found = (Endpoint(port=worker.port, grpc_port=worker.grpc_port) for worker in self._ready())
        return tuple(sorted(found, key=lambda endpoint: endpoint.port))

    def complete(self) -> bool:
        return len(self.endpoints()) == len(self.slots)

    def death(self) -> str | None:
        """Why a process ended, in its own words; None while all run."""
        for slot in self.slots:
            worker = slot.worker
            if worker is not None and worker.process.returncode not in (None, PORT_TAKEN):
                return f"its process ended with status {worker.process.returncode}: {_last_words(self.log, worker)}"
        return None

    def stop(self) -> None:
        """End every process: requests in flight are finished first."""
        with self._lock:
            self.closed = True
            workers = [slot.worker for slot in self.slots if slot.worker is not None]
            for worker in workers:
                worker.process.signal()
            deadline = time.monotonic() + self.drain_s + CLOSE_S
            for worker in workers:
                worker.process.stop(max(0.1, deadline - time.monotonic()))

    def statuses(self) -> Iterator[ProcessStatus]:
        for number, slot in enumerate(self.slots):
            worker = slot.worker
            alive = worker is not None and worker.process.alive()
            state = "draining" if self.draining else "ready" if worker and worker.ready else "starting"
            yield ProcessStatus(
                name=f"bento-{self.cluster}" + (f"-{number}" if len(self.slots) > 1 else ""),
                pid=worker.process.pid if worker else None,
                state=state if alive else "restarting" if self.keep else "stopped",
                port=worker.port if worker else None,
                restarts=slot.restarts,
                seconds=worker.seconds if worker else None,
                log=str(self.log),
            )


def vouches_for(port: int, cluster: str) -> bool:
    """True where the process on a port is ready and says that it belongs to the cluster."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1)
    try:
        connection.request("GET", "/readyz")
        response = connection.getresponse()
        response.read()
        return response.status == 200 and response.getheader("x-envoy-upstream-healthchecked-cluster") == cluster
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _last_words(log: Path, worker: Worker) -> str:
    try:
        with log.open("rb") as file:
            file.seek(worker.log_offset)
            lines = [line for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    except OSError:
        return ""
    for line in reversed(lines):
        try:
            said = json.loads(line)
        except ValueError:
            continue
        if isinstance(said, dict) and said.get("event") == "cannot serve":
            return str(said.get("reason"))
    return lines[-1][-500:] if lines else f"{log} has no line of it"
