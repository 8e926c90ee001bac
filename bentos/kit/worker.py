"""Start one serving process of a bento: `python -m bentos.kit.worker BENTO --port N`, from the bento's own src.

A service that has no bento is named by `module:attribute` instead.

`bentoml serve` puts a supervisor between, whose workers outlive it when it is killed and come back only after 10 s. We
have a supervisor; this runs the worker that BentoML would start (a private module: the version is pinned).
"""

from __future__ import annotations

import argparse
import socket
import sys
from collections.abc import Sequence
from typing import Any

from starlette.applications import Starlette

from bentos.kit import life
from bentos.kit.front import Front
from bentos.kit.settings import give_to_service, max_body_bytes

KEEP_ALIVE_S = 60
"""Longer than Envoy keeps an idle connection to us, so that it is never us who close one under a request."""

FRAME_SLACK_BYTES = 1024**2
"""A frame that is a little too large is told so by the service, after the answers to those before it; a larger one ends
the connection before it is read."""

PORT_TAKEN = 75
"""Exit status: the port was somebody else's; another one may do (EX_TEMPFAIL)."""


def main(arguments: Sequence[str]) -> None:
    """Serve until SIGTERM, then finish what is in flight."""
    parser = argparse.ArgumentParser(prog="bentos.kit.worker")
    parser.add_argument("bento", help="folder of the bento, or module:attribute of a service")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--grpc-port", type=int, default=0, help="0: no gRPC")
    parser.add_argument("--drain-timeout", type=int, default=30, metavar="SECONDS")
    options = parser.parse_args(arguments)

    from _bentoml_impl.worker.service import main as serve

    _configure_server()
    give_to_service(host=options.host, grpc_port=options.grpc_port, drain_timeout_s=options.drain_timeout)
    # Bound, not yet listening: connections are refused until the model is loaded and proved.
    listener = socket.socket(socket.AF_INET6 if ":" in options.host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((options.host, options.port))
    except OSError as error:
        sys.stderr.write(f"port {options.port}: {error}\n")
        sys.exit(PORT_TAKEN)
    serve(
        [
            options.bento,
            *("--fd", str(listener.detach())),
            *("--timeout-keep-alive", str(KEEP_ALIVE_S)),
            *("--timeout-graceful-shutdown", str(options.drain_timeout)),
        ]
    )


def _configure_server() -> None:
    """Say to uvicorn what BentoML, which starts it, has no way to say.

    The service's front comes first and BentoML's own layers behind it, which measure, trace and time out each request
    once more (0.08 ms of CPU); HTTP and WebSockets are spoken within our limits; and whoever drains beside HTTP is told
    when that begins to.
    """
    import uvicorn

    make = uvicorn.Config

    def configured(app: Starlette, **options: Any) -> uvicorn.Config:
        fronts = [one for one in app.user_middleware if one.cls is Front]  # type: ignore[comparison-overlap]
        front = Front(app, **fronts[0].kwargs) if fronts else app  # type: ignore[arg-type]
        return make(
            front,
            # By name: BentoML silences every logger that is there before it sets up its own.
            http="bentos.kit.heads:BoundedHeads",
            ws="bentos.kit.frames:BoundedFrames",
            ws_max_size=max_body_bytes() + FRAME_SLACK_BYTES,
            # Images are compressed already, and what unpacks to a thousand times its size is an attack.
            ws_per_message_deflate=False,
            # Whom the gateway speaks for is in its access log; nothing here asks for it.
            proxy_headers=False,
            **options,
        )

    class Server(uvicorn.Server):
        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            life.ask_to_end()
            await super().shutdown(sockets)

    uvicorn.Config = configured  # type: ignore[misc, assignment]
    uvicorn.Server = Server  # type: ignore[misc]


if __name__ == "__main__":
    main(sys.argv[1:])
