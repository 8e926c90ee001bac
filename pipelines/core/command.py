"""A `darkroom step` in a session of its own, whose output is read line by line and which never outlives its parent.

Airflow's operator and the direct runner both start steps through this. Linux only.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from pipelines.core.stephost import start_hosted

_CHUNK_BYTES = 65536
TAIL_LINES = 60
"""Lines of output that a caller keeps for `said`."""
_SAYS = "darkroom: "


class Command:
    """One running step: a fork of the step host where one answers, an ordinary process elsewhere.

    Start it in the thread that will wait for it: the child dies with that thread.
    """

    def __init__(
        self, arguments: Sequence[str], *, cwd: Path, environment: Mapping[str, str], host: Path | None = None
    ) -> None:
        self._output, output = os.pipe()
        try:
            hosted = start_hosted(host, arguments, environment, cwd, output) if host else None
            self._child = hosted or _start(arguments, environment, cwd, output)
        except BaseException:
            os.close(self._output)
            raise
        finally:
            os.close(output)
        self.pid = self._child.pid
        """Leader of the command's own session."""
        self._returncode: int | None = None

    def run(self, on_line: Callable[[str], None]) -> int:
        """Hand every line of output over as it comes; return the exit code (negative: the signal that ended it).

        What the command left running in its session is killed when it ends, and a grandchild that holds the pipe in a
        session of its own is not waited for.
        """
        try:
            for line in self._lines():
                on_line(line)
            return self._wait()
        finally:
            self._signal(signal.SIGKILL)
            os.close(self._output)

    def terminate(self, grace_s: float = 3.0) -> None:
        """TERM to the whole session, KILL to what is left after the grace. `run` then returns."""
        self._signal(signal.SIGTERM)
        deadline = time.monotonic() + grace_s
        while _alive(self.pid) and time.monotonic() < deadline:
            time.sleep(0.02)
        self._signal(signal.SIGKILL)

    def _wait(self) -> int:
        if self._returncode is None:
            self._returncode = self._child.wait()
        return self._returncode

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def _lines(self) -> Iterator[str]:
        pending = b""
        for chunk in self._chunks():
            *lines, pending = (pending + chunk).split(b"\n")
            yield from (line.decode("utf-8", "replace") for line in lines)
        if pending:
            yield pending.decode("utf-8", "replace")

    def _chunks(self) -> Iterator[bytes]:
        """Output until the command ends, and what is in the pipe by then."""
        os.set_blocking(self._output, False)
        try:
            ended = os.pidfd_open(self.pid)
        except ProcessLookupError:
            yield from _drain(self._output)
            return
        try:
            with selectors.DefaultSelector() as selector:
                selector.register(self._output, selectors.EVENT_READ)
                selector.register(ended, selectors.EVENT_READ)
                while True:
                    ready = {key.fd for key, _ in selector.select()}
                    if ended in ready:
                        break
                    chunks = list(_drain(self._output))
                    if not chunks:  # the command closed its output and runs on
                        selector.unregister(self._output)
                    yield from chunks
            yield from _drain(self._output)
        finally:
            os.close(ended)


def said(tail: Sequence[str]) -> str:
    """What a failed step told a person: its last `darkroom: ` line and all that follow, or its last lines."""
    marks = [number for number, line in enumerate(tail) if line.startswith(_SAYS)]
    return "\n".join(tail[marks[-1] :]).removeprefix(_SAYS) if marks else "\n".join(tail[-3:])


def _start(arguments: Sequence[str], environment: Mapping[str, str], cwd: Path, output: int) -> subprocess.Popen[bytes]:
    # The child asks the kernel for its end itself: Python code between fork and exec may deadlock where threads run.
    return subprocess.Popen(
        [sys.executable, "-m", "pipelines.cli.main", *arguments, "--parent", str(os.getpid())],
        cwd=cwd,
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        start_new_session=True,
    )


def _drain(descriptor: int) -> Iterator[bytes]:
    """What can be read now."""
    while True:
        try:
            chunk = os.read(descriptor, _CHUNK_BYTES)
        except BlockingIOError:
            return
        if not chunk:
            return
        yield chunk


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
