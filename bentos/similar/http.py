"""This service's paths, and the life of the process that serves them."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import AsyncIterator, Callable

from starlette.applications import Starlette

from bentos.kit import life
from bentos.kit.access import Guard
from bentos.kit.front import Endpoint, Table, get, post
from bentos.kit.telemetry import metrics
from bentos.similar import rest
from bentos.similar.dataplane import Dataplane
from pipelines.core.access import Scope

SERVICE = "darkroom-similar"
"""Its name in traces."""

logger = logging.getLogger("darkroom.similar")


def table() -> Table:
    """Every path that there is, with the scope that it asks for."""
    return Table(
        [
            post("similar", "/v1/similar", Scope.PREDICT, rest.similar),
            post("similar", "/v1/models/{name}/similar", Scope.PREDICT, rest.similar),
            Endpoint(
                name="openapi",
                path="/v1/similar/openapi.json",
                scope=Scope.READ_MODELS,
                handler=rest.openapi,
                method="GET",
                any_model=True,
            ),
            get("metrics", "/metrics", Scope.READ_METRICS, metrics),
        ]
    )


def application(load: Callable[[], tuple[Dataplane, Guard]]) -> Starlette:
    """The mounted app, which has no routes but the life of the process: `load` runs when it starts to serve.

    It is ready without database or store: what needs them says so, and begins to work when they are there.
    """

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        dataplane, guard = load()
        settings = dataplane.settings
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(
                life.traced(settings.tracing, service=SERVICE, cluster=settings.cluster, says={})
            )
            stack.push_async_callback(dataplane.close)
            stack.push_async_callback(guard.close)
            app.state.dataplane, app.state.guard = dataplane, guard
            app.state.model_name = settings.default_model
            life.say_limits(settings.max_waiting, settings.max_wait_s)
            app.state.ready = True
            life.settle()
            logger.info("serving", extra={"pid": os.getpid(), "default_model": settings.default_model})
            try:
                yield
            finally:
                app.state.ready, app.state.dataplane = False, None

    app = Starlette(lifespan=lifespan)
    app.state.ready, app.state.dataplane = False, None
    return app
