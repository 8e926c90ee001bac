"""Envoy as a process of this machine, and the end of serving without the loss of a request.

At that end the gateway closes its doors and hands on what it has. Then processes are asked to end, which they do with
the requests in their hands: they alone know a stream that may be left, such as a WebSocket at rest, from work that
somebody waits for. The gateway stays until the last answer has left it.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from pipelines.adapters.gateway import Gateway, Traffic, envoy_argv
from pipelines.core.errors import PlatformError
from pipelines.local.process import ManagedProcess, environment
from pipelines.local.services import Service, get
from pipelines.settings import Settings

NAME = "envoy"
_LOOK_S = 0.05
SEND_S = 5.0
"""For clients to read what of their answers has not left the gateway when no process is there any more."""


def service(settings: Settings) -> Service:
    """Not started yet. `write_initial` comes first."""
    process = ManagedProcess(
        NAME,
        envoy_argv(settings),
        environment(settings),
        settings.home / "logs" / "envoy.log",
        port=settings.gateway_port,
    )
    admin = settings.port("envoy_admin")
    return Service(process=process, ready=lambda: get(admin, "/ready")[0] == 200, stop_s=5)


def hand_on(gateway: Gateway, patience_s: float) -> bool:
    """Have the gateway take nothing new, and wait until processes have all that it took, or patience ends.

    False where the gateway does not answer: it is gone, or hangs, and its requests are lost already.
    """
    try:
        gateway.close_to_clients()
    except PlatformError:
        return False
    return _until(gateway, lambda traffic: traffic.kept == 0, patience_s)


def send(gateway: Gateway, patience_s: float = SEND_S) -> None:
    """Wait until every answer has left the gateway, or patience ends."""
    _until(gateway, lambda traffic: traffic.over, patience_s)


def _until(gateway: Gateway, condition: Callable[[Traffic], bool], patience_s: float) -> bool:
    """False where the gateway does not answer."""
    deadline = time.monotonic() + patience_s
    held = 0
    try:
        # Twice in a row: Envoy's numbers are not of one moment, and a request may be between two of them.
        while held < 2 and time.monotonic() < deadline:
            held = held + 1 if condition(gateway.traffic()) else 0
            time.sleep(_LOOK_S)
    except PlatformError:
        return False
    return True
