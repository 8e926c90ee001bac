"""The bare control as a process of its own, measured by the same clock as the servers."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench import process_tree
from bench.report import REPOSITORY
from bench.serving.load import Measurement
from pipelines.core.errors import PlatformError
from pipelines.core.model_package import ModelPackage

BENCHMARKS = REPOSITORY / "tests" / "benchmarks"


def environment() -> dict[str, str]:
    """For programs of this folder that run in a process of their own."""
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join((str(REPOSITORY), str(BENCHMARKS))),
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }


class BareControl:
    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def ask(self, **job: Any) -> dict[str, Any]:
        """Raises PlatformError where the process has ended."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise PlatformError("the bare control ended; what it said is above")
        found: dict[str, Any] = json.loads(line)
        return found

    def probabilities(self) -> list[list[float]]:
        """Of every image and class."""
        found: list[list[float]] = self.ask(answers=True)["probabilities"]
        return found

    def turn(self, seconds: float) -> Measurement:
        before = process_tree.cpu_s(self._process.pid)
        found = self.ask(seconds=seconds)
        cpu_s = process_tree.cpu_s(self._process.pid) - before
        return Measurement(requests=found["requests"], wall_s=found["wall_s"], server_cpu_s={"bare": cpu_s})


@contextlib.contextmanager
def bare(
    package: ModelPackage, files: Sequence[Path], *, threads: int, concurrency: int, interpreter: str = sys.executable
) -> Iterator[BareControl]:
    """Ready to work on the files until the end of the block. `interpreter` chooses the environment: the runtime."""
    argv = [
        interpreter,
        "-m",
        "bench.serving.bare",
        str(package.folder),
        package.variant,
        str(threads),
        str(concurrency),
    ]
    process = subprocess.Popen(argv, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        control = BareControl(process)
        control.ask(files=[str(path) for path in files])
        yield control
    finally:
        process.kill()
        process.wait()
