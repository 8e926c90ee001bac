"""The peers' servers, each started by its vendor's own command, in its default and in its fast mode."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from bench.serving.control import environment
from bench.serving.peers.environments import python
from bench.serving.servers import Command, Server, started
from bench.serving.stage import Stage
from pipelines.core.model_package import ModelPackage
from pipelines.local.ports import free_port

Argv = Callable[[Path, int, Path, int], list[str]]


@dataclass(frozen=True, kw_only=True)
class Peer:
    """One mode of one server."""

    environment: str
    argv: Argv
    """From its interpreter, port, a folder for its files, and how many batches it may compute at once."""
    path: str
    encoding: str
    ready: str


def _bentoml(service: str) -> Argv:
    def argv(interpreter: Path, port: int, _: Path, __: int) -> list[str]:
        name = f"bench.serving.peers.bentoml_service:{service}"
        return [str(interpreter), "-m", "bentoml", "serve", name, "--host", "127.0.0.1", "--port", str(port)]

    return argv


def _litserve(mode: str) -> Argv:
    return lambda interpreter, port, _, __: [
        *(str(interpreter), "-m", "bench.serving.peers.litserve_server", str(port), mode)
    ]


def _mlserver(settings: Mapping[str, object], *, alone: bool) -> Argv:
    """`alone`: one process is server and worker, where it may compute one batch at once."""

    def argv(interpreter: Path, port: int, folder: Path, concurrency: int) -> list[str]:
        ports = {"http_port": port, "grpc_port": free_port(), "metrics_port": free_port()}
        workers = {"parallel_workers": 0 if alone and concurrency == 1 else concurrency}
        (folder / "settings.json").write_text(json.dumps({"host": "127.0.0.1", **ports, **workers, **settings}))
        model = {"name": "classifier", "implementation": "bench.serving.peers.mlserver_runtime.Classifier"}
        (folder / "model-settings.json").write_text(json.dumps(model))
        return [str(interpreter.with_name("mlserver")), "start", str(folder)]

    return argv


_BENTOML = {"environment": "bentoml", "path": "/classify", "encoding": "multipart", "ready": "/readyz"}
_LITSERVE = {"environment": "litserve", "path": "/predict", "encoding": "json", "ready": "/health"}
_MLSERVER = {
    "environment": "mlserver",
    "path": "/v2/models/classifier/infer",
    "encoding": "v2",
    "ready": "/v2/models/classifier/ready",
}

PEERS = {
    "BentoML": Peer(argv=_bentoml("Stock"), **_BENTOML),
    "BentoML, fast": Peer(argv=_bentoml("Fast"), **_BENTOML),
    "LitServe": Peer(argv=_litserve("default"), **_LITSERVE),
    "LitServe, fast": Peer(argv=_litserve("fast"), **_LITSERVE),
    "MLServer": Peer(argv=_mlserver({}, alone=False), **_MLSERVER),
    # In the server's own process instead of one beside it, where one suffices, and without its debug log.
    "MLServer, fast": Peer(argv=_mlserver({"debug": False}, alone=True), **_MLSERVER),
}


@contextlib.contextmanager
def serve(place: Stage, package: ModelPackage, name: str) -> Iterator[Server]:
    """Until the end of the block. Raises PlatformError where it cannot be installed or started."""
    peer, options = PEERS[name], place.options
    port, folder = free_port(), place.work / name.replace(", ", "-")
    folder.mkdir()
    command = Command(
        name=name,
        argv=peer.argv(python(peer.environment, place.kept), port, folder, options.concurrency),
        env={
            **environment(),
            "BENCH_PACKAGE": str(package.folder),
            "BENCH_VARIANT": package.variant,
            "BENCH_THREADS": str(options.threads),
            "BENCH_CONCURRENCY": str(options.concurrency),
            "BENCH_MAX_BATCH": str(options.connections),
            "BENTOML_HOME": str(folder),
            "BENTOML_DO_NOT_TRACK": "True",
            "DO_NOT_TRACK": "true",
        },
        cwd=folder,
        log=folder / "log",
        port=port,
        ready=peer.ready,
    )
    with started(command) as (pid, _):
        pids = {peer.environment: pid}
        yield Server(name=name, port=port, pids=pids, log=command.log, path=peer.path, encoding=peer.encoding)
