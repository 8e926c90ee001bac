"""The search for similar images, served by a real BentoML worker in a process of its own."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from serving_platform import ask, wait_until

from pipelines.local.ports import free_port
from pipelines.local.process import memory_bytes
from pipelines.settings import REPOSITORY


@dataclass(frozen=True, kw_only=True)
class Searching:
    port: int
    pid: int
    log: Path

    @property
    def memory_bytes(self) -> int:
        """PSS."""
        return memory_bytes(self.pid)

    def libraries(self) -> str:
        """Files that are mapped into the process."""
        return Path(f"/proc/{self.pid}/maps").read_text()


def environment(work: Path, store_uri: str, recipes: Path, default_model: str) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(REPOSITORY),
        "BENTOML_HOME": str(work / "bentoml"),
        "BENTOML_DO_NOT_TRACK": "True",
        "DARKROOM_CLUSTER": "similar",
        "DARKROOM_MAX_BODY_BYTES": "1000000",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "DARKROOM_AUTH": "off",
        "DARKROOM_STORE": store_uri,
        "DARKROOM_CACHE": str(work / "cache"),
        "DARKROOM_RECIPES": str(recipes),
        "DARKROOM_DEFAULT_MODEL": default_model,
    }


@contextlib.contextmanager
def searching(work: Path, store_uri: str, recipes: Path, default_model: str, **variables: str) -> Iterator[Searching]:
    """Serve until the end of the block. `variables` are added to the environment."""
    port, log = free_port(), work / f"similar-{free_port()}.log"
    with log.open("w") as file:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "bentos.kit.worker", "bentos.similar.service:SimilarService"),
                *("--port", str(port), "--drain-timeout", "5"),
            ],
            env={**environment(work, store_uri, recipes, default_model), **variables},
            cwd=REPOSITORY,
            stderr=file,
            stdout=file,
        )
    try:
        wait_until(lambda: process.poll() is not None or _ready(port))
        assert process.poll() is None, log.read_text()
        yield Searching(port=port, pid=process.pid, log=log)
    finally:
        process.terminate()
        process.wait(20)


def _ready(port: int) -> bool:
    try:
        return ask(port, "/readyz")[0] == 200
    except OSError:
        return False


@dataclass
class Link:
    """A TCP link to a server on 127.0.0.1 that can be cut, and can hang."""

    target_port: int
    port: int = field(default_factory=free_port)
    hangs: bool = False
    """Takes connections and bytes, and gives nothing back."""
    _listener: socket.socket | None = None
    _ends: list[socket.socket] = field(default_factory=list)

    def up(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def down(self) -> None:
        """No new connections, and the end of those there are."""
        if self._listener is not None:
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            self._listener = None
        for end in self._ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        self._ends.clear()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
                server = socket.create_connection(("127.0.0.1", self.target_port))
            except OSError:
                return
            self._ends += [client, server]
            for source, sink in ((client, server), (server, client)):
                threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if not self.hangs:
                    sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_RDWR)
