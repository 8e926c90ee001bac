"""The classifier's HTTP and WebSocket paths, and the life of the process that serves them."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import AsyncIterator, Callable

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route, WebSocketRoute

from bentos.classifier import rest, stream
from bentos.classifier.batch import classify_batch
from bentos.classifier.dataplane import Dataplane
from bentos.classifier.oip import rest as oip
from bentos.classifier.oip.grpc_server import GrpcServer
from bentos.kit.errors import respond
from bentos.kit.telemetry import metrics
from pipelines.core.errors import NotFound

_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


def application(load: Callable[[], Dataplane]) -> Starlette:
    """The mounted app. `load` runs when the process starts to serve, never at import."""

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        dataplane = load()
        async with contextlib.AsyncExitStack() as stack:
            stack.callback(dataplane.close)
            await stack.enter_async_context(GrpcServer(dataplane, dataplane.settings))
            app.state.dataplane = dataplane
            # What is loaded stays: p99 fell from 142 to 4 ms once the collector stopped walking it.
            gc.freeze()
            gc.set_threshold(50_000, 20, 1000)
            try:
                yield
            finally:
                app.state.dataplane = None

    app = Starlette(
        routes=[
            *_paths("/classify", rest.classify, "POST"),
            *_paths("/classify/batch", classify_batch, "POST"),
            *_paths("/embed", rest.embed, "POST"),
            *_open(oip.routes()),
            *_paths("/openapi.json", rest.openapi, "GET"),
            *_open([Route("/v1/models/{name}", rest.describe, methods=["GET"])]),
            WebSocketRoute("/v1/stream", stream.stream),
            WebSocketRoute("/v1/models/{name}/stream", stream.stream),
            Route("/metrics", metrics, methods=["GET"]),
            # Before BentoML's own page, which refers to other hosts. GET and HEAD of unknown paths go on to BentoML,
            # whose probes are there.
            Route("/{path:path}", unknown, methods=[one for one in _METHODS if one not in ("GET", "HEAD")]),
        ],
        lifespan=lifespan,
        exception_handlers={Exception: respond, 404: respond, 405: respond},
    )
    app.state.dataplane = None
    return app


def _paths(end: str, handler: Callable[[Request], object], method: str) -> list[BaseRoute]:
    """The path of the default model and that of a model by name."""
    return _open(
        [Route(f"/v1{end}", handler, methods=[method]), Route(f"/v1/models/{{name}}{end}", handler, methods=[method])]
    )


def _open(routes: list[Route]) -> list[BaseRoute]:
    """The routes, and a 405 that says which method each would take."""
    refusals = [
        Route(
            route.path,
            _refusal(sorted(route.methods or ())),
            methods=[method for method in _METHODS if method not in (route.methods or ())],
        )
        for route in routes
    ]
    return [*routes, *refusals]


def _refusal(methods: list[str]) -> Callable[[Request], object]:
    allowed = ", ".join(methods)

    async def refuse(request: Request) -> Response:
        return await respond(request, HTTPException(405, f"this path takes {allowed}", {"Allow": allowed}))

    return refuse


async def unknown(request: Request) -> Response:
    return await respond(request, NotFound(f"{request.url.path}: no such path"))
