"""Our side: a bento's worker as the platform starts it, alone or behind the platform's Envoy."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from bench.serving.access import access
from bench.serving.servers import Command, Server, started
from pipelines import settings as platform_settings
from pipelines.adapters.gateway import Backend, Endpoint, Gateway, View, envoy_argv, write_initial
from pipelines.core.errors import PlatformError
from pipelines.local import certificates
from pipelines.local.ports import free_port
from pipelines.local.process import ManagedProcess, environment
from pipelines.settings import DEFAULT_PORTS

CLUSTER = "bench-v1-1"
_VERSION = "1"
_GATEWAY_S = 30.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Worker:
    server: Server
    grpc_port: int
    ready_s: float
    """From the start of its process to the first 200 of /readyz."""


@contextlib.contextmanager
def worker(
    bento: Path, work: Path, variables: Mapping[str, str], *, name: str = "ours", probe: Path | None = None
) -> Iterator[Worker]:
    """One serving process until the end of the block, with `variables` in its environment.

    `probe` is a folder with a sitecustomize that looks inside without a change to what serves.
    """
    port, grpc_port, allowed = free_port(), free_port(), access(work)
    command = Command(
        name=name,
        argv=[
            *(sys.executable, "-m", "bentos.kit.worker", str(bento)),
            *("--port", str(port), "--grpc-port", str(grpc_port)),
        ],
        env=_environment(bento, work, {**allowed.variables, **variables}, probe),
        cwd=bento / "src",
        log=work / f"{name.replace(' ', '-')}.log",
        port=port,
    )
    with started(command) as (pid, ready_s):
        server = Server(name=name, port=port, pids={"worker": pid}, log=command.log, headers=allowed.headers)
        yield Worker(server=server, grpc_port=grpc_port, ready_s=ready_s)


def _environment(bento: Path, work: Path, variables: Mapping[str, str], probe: Path | None) -> dict[str, str]:
    path = [str(one) for one in (probe, bento / "src") if one]
    return {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": os.pathsep.join(path),
        "PYTHONDONTWRITEBYTECODE": "",
        "BENTOML_HOME": str(work / "bentoml"),
        "BENTOML_DO_NOT_TRACK": "True",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "DARKROOM_CLUSTER": CLUSTER,
        "DARKROOM_PROVIDER": "cpu",
        **variables,
    }


@contextlib.contextmanager
def behind_envoy(serving: Worker, model: str, work: Path) -> Iterator[Server]:
    """The same process behind Envoy as the platform configures it. Raises PlatformError where that does not answer."""
    home = work / "gateway"
    home.mkdir()
    (home / "ports.json").write_text(json.dumps({service: free_port() for service in DEFAULT_PORTS}))
    settings = dataclasses.replace(platform_settings.load(), home=home, gateway_port=free_port(), default_model=model)
    certificates.ensure(settings)
    write_initial(settings)
    log = home / "logs" / "envoy.log"
    process = ManagedProcess("envoy", envoy_argv(settings), environment(settings), log)
    process.start()
    try:
        gateway = Gateway(settings)
        _wait(gateway.ready, log)
        endpoint = Endpoint(port=serving.server.port, grpc_port=serving.grpc_port)
        clusters = {CLUSTER: (endpoint,)}
        gateway.apply(View(clusters=clusters))
        _wait(lambda: endpoint.port in gateway.healthy_ports(CLUSTER), log)
        routes = {model: (Backend(cluster=CLUSTER, version=_VERSION, weight=100),)}
        gateway.apply(View(clusters=clusters, routes=routes))
        assert process.pid is not None
        pids = {**serving.server.pids, "envoy": process.pid}
        yield dataclasses.replace(serving.server, name="envoy", port=settings.gateway_port, pids=pids, log=log)
    finally:
        process.stop(10)


def _wait(condition: Callable[[], bool], log: Path) -> None:
    deadline = time.monotonic() + _GATEWAY_S
    while not condition():
        if time.monotonic() > deadline:
            raise PlatformError(f"Envoy is not in front of the worker after {_GATEWAY_S:.0f} s; its log: {log}")
        time.sleep(0.02)
