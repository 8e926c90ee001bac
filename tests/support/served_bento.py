"""A built bento, served by a real BentoML worker in a process of its own."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from serving_platform import ask, wait_until

from pipelines.core.model_package import ModelPackage
from pipelines.local.ports import free_port


@dataclass(frozen=True, kw_only=True)
class Served:
    bento: Path
    package: ModelPackage
    port: int
    grpc_port: int
    log: Path
    pid: int


def environment(bento: Path) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(bento / "src"),
        "BENTOML_HOME": str(bento.parent / "home"),
        "BENTOML_DO_NOT_TRACK": "True",
        "DARKROOM_CLUSTER": "colours-v7-1",
        "DARKROOM_MAX_BODY_BYTES": "1000000",
        "OMP_NUM_THREADS": "1",
        # tests/bentos/test_access.py has it on.
        "DARKROOM_AUTH": "off",
    }


@contextlib.contextmanager
def serve(bento: Path, package: ModelPackage, **variables: str) -> Iterator[Served]:
    """Serve until the end of the block. `variables` are added to the environment."""
    port, grpc_port = free_port(), free_port()
    log = bento.parent / f"log-{port}"
    with log.open("w") as file:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "bentos.kit.worker", str(bento)),
                *("--port", str(port), "--grpc-port", str(grpc_port)),
            ],
            env={**environment(bento), **variables},
            cwd=bento / "src",
            stderr=file,
            stdout=file,
        )
    try:
        wait_until(lambda: process.poll() is not None or _ready(port))
        assert process.poll() is None, log.read_text()
        yield Served(bento=bento, package=package, port=port, grpc_port=grpc_port, log=log, pid=process.pid)
    finally:
        process.terminate()
        process.wait(20)


def _ready(port: int) -> bool:
    try:
        return ask(port, "/livez")[0] == 200
    except OSError:
        return False
