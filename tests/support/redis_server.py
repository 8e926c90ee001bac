"""A real Redis of a test's own, on a free port of this machine, that can be killed and started again."""

from __future__ import annotations

import contextlib
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from serving_platform import wait_until

from pipelines.local.ports import free_port

BINARY = shutil.which("redis-server")
MISSING = "no redis-server on this machine (Debian: apt-get install redis-server)"


@dataclass
class RedisProcess:
    """`start` after `kill` begins empty, on the same port."""

    folder: Path
    options: tuple[str, ...] = ()
    port: int = field(default_factory=free_port)
    url: str = ""
    """Set by whoever passes `options` that need another one."""
    _process: subprocess.Popen[bytes] | None = None

    def __post_init__(self) -> None:
        self.url = self.url or f"redis://127.0.0.1:{self.port}/0"

    @property
    def url_file(self) -> Path:
        path = self.folder / "redis-url"
        path.write_text(self.url + "\n")
        return path

    def start(self) -> None:
        assert BINARY is not None
        with (self.folder / "redis.log").open("a") as log:
            self._process = subprocess.Popen(
                [
                    BINARY,
                    *self._listen(),
                    "--bind",
                    "127.0.0.1",
                    "--save",
                    "",
                    "--dir",
                    str(self.folder),
                    *self.options,
                ],
                stdout=log,
                stderr=log,
            )
        wait_until(self._answers)

    def _listen(self) -> tuple[str, ...]:
        if "--tls-cert-file" in self.options:
            return ("--port", "0", "--tls-port", str(self.port))
        return ("--port", str(self.port))

    def _answers(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
            return True
        return False

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def hang(self) -> None:
        """It takes connections and says nothing, until `wake`."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def wake(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)


@contextlib.contextmanager
def running_redis(folder: Path, *options: str, url: str = "", port: int | None = None) -> Iterator[RedisProcess]:
    """Until the end of the block. Skips the test where there is no redis-server."""
    if BINARY is None:
        pytest.skip(MISSING)
    folder.mkdir(parents=True, exist_ok=True)
    server = RedisProcess(folder, options, port=port or free_port(), url=url)
    server.start()
    try:
        yield server
    finally:
        server.kill()
