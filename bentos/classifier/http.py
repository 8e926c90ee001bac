"""The classifier's HTTP and WebSocket paths, and the life of the process that serves them."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict

from starlette.applications import Starlette

from bentos.classifier import rest, stream
from bentos.classifier.batch import classify_batch
from bentos.classifier.dataplane import Dataplane
from bentos.classifier.index import index
from bentos.classifier.oip import rest as oip
from bentos.classifier.oip.grpc_server import GrpcServer
from bentos.kit import tracing
from bentos.kit.access import Guard
from bentos.kit.front import Endpoint, Table, get, post
from bentos.kit.settings import ServiceSettings, max_bytes_in_flight
from bentos.kit.telemetry import LIMIT, metrics
from pipelines.core.access import Scope


def table() -> Table:
    """Every path that there is, with the scope that it asks for."""
    found = [
        Endpoint(name="index", path="/", scope=Scope.READ_MODELS, handler=index, method="GET", any_model=True),
        get("describe", "/v1/models/{name}", Scope.READ_MODELS, rest.describe),
        get("metrics", "/metrics", Scope.READ_METRICS, metrics),
        *oip.endpoints(),
    ]
    # The paths of the default model, and those of a model by name.
    for start in ("/v1", "/v1/models/{name}"):
        found += [
            post("classify", f"{start}/classify", Scope.PREDICT, rest.classify),
            post("classify-batch", f"{start}/classify/batch", Scope.PREDICT, classify_batch),
            post("embed", f"{start}/embed", Scope.PREDICT, rest.embed),
            get("openapi", f"{start}/openapi.json", Scope.READ_MODELS, rest.openapi),
            Endpoint(name=stream.ROUTE, path=f"{start}/stream", scope=Scope.PREDICT, socket=stream.stream),
        ]
    return Table(found)


def application(load: Callable[[], tuple[Dataplane, Guard]]) -> Starlette:
    """The mounted app, which has no routes but the life of the process: `load` runs when it starts to serve."""

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        dataplane, guard = load()
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(_traced(dataplane))
            stack.callback(dataplane.close)
            stack.push_async_callback(guard.close)
            await stack.enter_async_context(GrpcServer(dataplane, guard, dataplane.settings))
            app.state.dataplane, app.state.guard = dataplane, guard
            app.state.model_name = dataplane.identity.model_name
            _say_limits(dataplane.settings)
            app.state.ready = True
            # What is loaded stays: p99 fell from 142 to 4 ms once the collector stopped walking it.
            gc.freeze()
            gc.set_threshold(50_000, 20, 1000)
            try:
                yield
            finally:
                app.state.ready, app.state.dataplane = False, None

    app = Starlette(lifespan=lifespan)
    app.state.ready, app.state.dataplane = False, None
    return app


@contextlib.asynccontextmanager
async def _traced(dataplane: Dataplane) -> AsyncIterator[None]:
    """Requests are traced from entry to exit, where there is a collector."""
    settings = dataplane.settings
    if settings.tracing is None:
        yield
        return
    from bentos.kit.trace_export import TraceExport

    export = TraceExport(settings.tracing, cluster=settings.cluster)
    model = {f"darkroom.{name}": value for name, value in asdict(dataplane.identity).items()}
    tracing.use(tracing.Tracer(sample=settings.tracing.sample, attributes=model, take=export.take))
    try:
        yield
    finally:
        tracing.use(None)
        await asyncio.to_thread(export.close)


def _say_limits(settings: ServiceSettings) -> None:
    """As metrics, beside what is used of them."""
    LIMIT.labels("waiting_images").set(settings.max_waiting)
    LIMIT.labels("wait_seconds").set(settings.max_wait_s)
    LIMIT.labels("bytes_in_flight").set(max_bytes_in_flight())
    LIMIT.labels("cache_bytes").set(settings.cache_bytes)
