"""The step host: heavy libraries loaded once, one forked child a step.

Run as `python -m pipelines.local.stephost FOLDER`. Only foreign libraries are preloaded, never our own modules: a step
always runs the code that lies in the tree, as its key says. The host stays single-threaded, so that forking is safe.
"""

from __future__ import annotations

import importlib
import json
import os
import selectors
import signal
import socket
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pipelines.core.processes import die_with_parent
from pipelines.core.stephost import SOCKET_NAME, short_path

# Not onnxruntime: it is fast to import, and starts a thread.
PRELOADED = (
    "numpy",
    "pyarrow.parquet",
    "pyarrow.dataset",
    "PIL.Image",
    "pandas",
    "psycopg",
    "sqlalchemy",
    "great_expectations",
    "mlflow",
    "mlflow.store.tracking.sqlalchemy_store",
    "onnx",
    "matplotlib.figure",
)
MAX_ORDER_BYTES = 1 << 20


@dataclass
class _Child:
    pid: int
    descriptor: int
    connection: socket.socket


class StepHost:
    """Accepts orders on a socket and forks a child for each."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._selector = selectors.DefaultSelector()
        self._selector.register(listener, selectors.EVENT_READ, None)

    def serve(self) -> None:
        """Run until killed."""
        while True:
            for event, _ in self._selector.select():
                if event.data is None:
                    self._accept()
                else:
                    self._finish(event.data, ended=event.fd == event.data.descriptor)

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        connection.settimeout(5)
        try:
            message, descriptors, _, _ = socket.recv_fds(connection, MAX_ORDER_BYTES, 1)
            while not message.endswith(b"\n"):
                chunk = connection.recv(MAX_ORDER_BYTES)
                if not chunk:
                    raise ValueError("the caller went away in the middle of its order")
                message += chunk
            order = json.loads(message)
            (output,) = descriptors
        except (OSError, ValueError):
            connection.close()
            return
        connection.settimeout(None)
        pid = os.fork()
        if pid == 0:
            self._become(order, output)
        os.close(output)
        child = _Child(pid, os.pidfd_open(pid), connection)
        self._selector.register(child.descriptor, selectors.EVENT_READ, child)
        self._selector.register(connection, selectors.EVENT_READ, child)
        with suppress(OSError):
            connection.sendall(f"{pid}\n".encode())

    def _become(self, order: dict[str, object], output: int) -> None:
        """In the child: become the step. Never returns."""
        code = 70
        try:
            die_with_parent(os.getppid())
            os.setsid()
            for signal_number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(signal_number, signal.SIG_DFL)
            os.dup2(output, 1)
            os.dup2(output, 2)
            # The caller's connection must not stay open here: its closing is what ends a step whose task has died.
            os.closerange(3, 1024)
            os.environ.clear()
            os.environ.update({str(key): str(value) for key, value in order["environment"].items()})  # type: ignore[attr-defined]
            os.chdir(str(order["cwd"]))
            sys.argv = ["darkroom", *order["arguments"]]  # type: ignore[misc]
            importlib.import_module("pipelines.cli.main").main()
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            with suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)

    def _finish(self, child: _Child, *, ended: bool) -> None:
        """The child has ended, or its caller has gone and it must."""
        with suppress(KeyError):
            self._selector.unregister(child.descriptor)
            self._selector.unregister(child.connection)
        # Also where the step ended by itself: nothing of its session may outlive it.
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        # And the child by itself: where the caller has gone at once, it has no group of its own yet.
        os.kill(child.pid, signal.SIGKILL)
        _, status = os.waitpid(child.pid, 0)
        if ended:
            with suppress(OSError):
                child.connection.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
        child.connection.close()
        os.close(child.descriptor)


def preload() -> None:
    """Import the heavy libraries; one that is missing or broken is left to the step that needs it."""
    for name in PRELOADED:
        with suppress(Exception):
            importlib.import_module(name)
    # torch reads it when it is loaded, and children fork after that; why: pipelines/training/__init__.py.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Feast imports torch by itself (625 MB) unless it finds it missing; steps that train find it again.
    sys.modules["torch"] = None  # type: ignore[assignment]
    for name in ("feast", "feast.infra.offline_stores.dask"):
        with suppress(Exception):
            importlib.import_module(name)
    del sys.modules["torch"]
    # 640 MB at rest, for 3 to 10 s less (measured on 2 shared cores) of each step that trains or exports.
    for name in ("torch", "torchvision"):
        with suppress(Exception):
            importlib.import_module(name)


def main(folder: Path) -> None:
    """Listen in `folder` and serve. The socket is only for this user: the folder is 0700."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    preload()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with short_path(folder, SOCKET_NAME) as path:
        with suppress(FileNotFoundError):
            Path(path).unlink()
        listener.bind(path)
        Path(path).chmod(0o600)
    listener.listen(64)
    StepHost(listener).serve()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
