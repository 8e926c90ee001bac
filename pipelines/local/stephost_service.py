"""The step host as a process of this machine; apart from `stephost.py`, which must not load modules of ours."""

from __future__ import annotations

import socket
import sys

from pipelines.core.stephost import SOCKET_NAME, short_path
from pipelines.local import state
from pipelines.local.process import ManagedProcess, environment
from pipelines.local.services import Service
from pipelines.settings import Settings

NAME = "step-host"


def service(settings: Settings) -> Service:
    """Not started yet. Ready when it takes orders, with all that it preloads."""
    folder = state.folder(settings)
    process = ManagedProcess(
        NAME,
        [sys.executable, "-m", "pipelines.local.stephost", str(folder)],
        environment(settings),
        settings.home / "logs" / "step-host.log",
    )

    def ready() -> bool:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection, short_path(folder, SOCKET_NAME) as path:
            try:
                connection.connect(path)
            except OSError:
                return False
        return True

    return Service(process=process, ready=ready, stop_s=3)
