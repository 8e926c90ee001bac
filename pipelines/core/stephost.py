"""The wire to the step host: a process with the heavy libraries loaded that forks one child a step.

Starting an interpreter and importing Great Expectations, Feast or MLflow costs 1 to 4 seconds a task; a fork of a
process that has them costs milliseconds. The host (`pipelines.local.stephost`) answers on a Unix socket below
DARKROOM_HOME; where none answers, callers start an ordinary process instead, with the same result.

A connection is a step: the caller sends one JSON line (arguments, environment, cwd) with the file descriptor for the
step's output, and reads back one line, the pid, and at the end another, the exit code. Closing the connection kills
the step's session, and the kernel closes it when the caller dies: no step outlives its task.
"""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

SOCKET_NAME = "steps.sock"


@contextmanager
def short_path(folder: Path, name: str) -> Iterator[str]:
    """A path to folder/name for bind() and connect(), which allow 107 bytes, however deep the folder lies."""
    descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{descriptor}/{name}"
    finally:
        os.close(descriptor)


class HostedStep:
    """A step running in a child of the host; the part of Popen that callers need."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._lines = connection.makefile("r")
        self.pid = int(self._lines.readline() or 0)
        """Leader of the step's own session."""
        if not self.pid:
            raise ConnectionError("the step host went away")

    def wait(self) -> int:
        """The exit code; negative is the signal that ended it. A host that dies takes its steps along: -9."""
        line = self._lines.readline()
        self._connection.close()
        return int(line) if line.strip() else -signal.SIGKILL


def start_hosted(
    folder: Path, arguments: Sequence[str], environment: Mapping[str, str], cwd: Path, output: int
) -> HostedStep | None:
    """Run `darkroom ARGUMENTS` in a fork of the host whose socket lies in `folder`; None where no host answers."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with short_path(folder, SOCKET_NAME) as path:
            connection.connect(path)
        order = {"arguments": list(arguments), "environment": dict(environment), "cwd": str(cwd)}
        socket.send_fds(connection, [json.dumps(order).encode() + b"\n"], [output])
        return HostedStep(connection)
    except (OSError, ValueError):
        connection.close()
        return None
