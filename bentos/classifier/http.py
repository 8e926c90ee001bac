"""The classifier's HTTP and WebSocket paths, and the life of the process that serves them."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict, dataclass

from starlette.applications import Starlette

from bentos.classifier import rest, stream
from bentos.classifier.batch import classify_batch
from bentos.classifier.dataplane import Dataplane
from bentos.classifier.index import index
from bentos.classifier.oip import rest as oip
from bentos.classifier.oip.grpc_server import GrpcServer
from bentos.kit import life
from bentos.kit.access import Guard
from bentos.kit.front import Endpoint, Table, get, post
from bentos.kit.shared.server import RedisServer
from bentos.kit.telemetry import LIMIT, metrics
from pipelines.core.access import Scope

SERVICE = "darkroom-classifier"
"""Its name in traces."""


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


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What a process serves with."""

    dataplane: Dataplane
    guard: Guard
    redis: RedisServer | None
    """None where nothing is shared."""


def application(load: Callable[[], Parts]) -> Starlette:
    """The mounted app, which has no routes but the life of the process: `load` runs when it starts to serve."""

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        parts = load()
        dataplane, guard = parts.dataplane, parts.guard
        async with contextlib.AsyncExitStack() as stack:
            settings, model = dataplane.settings, asdict(dataplane.identity)
            await stack.enter_async_context(
                life.traced(settings.tracing, service=SERVICE, cluster=settings.cluster, says=model)
            )
            if parts.redis is not None:
                stack.push_async_callback(parts.redis.close)
                await parts.redis.open()
            stack.callback(dataplane.close)
            stack.push_async_callback(dataplane.settle)
            stack.push_async_callback(guard.close)
            await stack.enter_async_context(life.until_asked_to_end(GrpcServer(dataplane, guard, settings)))
            app.state.dataplane, app.state.guard = dataplane, guard
            app.state.model_name = dataplane.identity.model_name
            life.say_limits(settings.max_waiting, settings.max_wait_s)
            LIMIT.labels("cache_bytes").set(settings.cache_bytes)
            app.state.ready = True
            life.settle()
            try:
                yield
            finally:
                app.state.ready, app.state.dataplane = False, None

    app = Starlette(lifespan=lifespan)
    app.state.ready, app.state.dataplane = False, None
    return app
