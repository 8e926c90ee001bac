"""HTTP over the dataplane: paths, bodies in, JSON out. Nothing is decided here."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import AsyncIterator, Callable
from typing import cast

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from bentos.classifier.dataplane import Dataplane
from bentos.kit.bodies import read_file
from bentos.kit.errors import RequestRefused, request_id, respond
from bentos.kit.telemetry import metrics
from pipelines.core.errors import NotFound

MAX_TOP_K = 100_000
OTHER_METHODS = ["GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS"]


def application(load: Callable[[], Dataplane]) -> Starlette:
    """The mounted app. `load` runs when the process starts to serve, never at import."""

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        app.state.dataplane = load()
        # What is loaded stays: p99 fell from 142 to 4 ms once the collector stopped walking it.
        gc.freeze()
        gc.set_threshold(50_000, 20, 1000)
        try:
            yield
        finally:
            dataplane, app.state.dataplane = app.state.dataplane, None
            dataplane.close()

    app = Starlette(
        routes=[
            Route("/v1/classify", classify, methods=["POST"]),
            Route("/v1/models/{name}/classify", classify, methods=["POST"]),
            Route("/v1/models/{name}", describe, methods=["GET"]),
            Route("/metrics", metrics, methods=["GET"]),
            Route("/v1/classify", wrong_method, methods=OTHER_METHODS),
            Route("/v1/models/{name}/classify", wrong_method, methods=OTHER_METHODS),
            # Before BentoML's own page, which refers to other hosts.
            Route("/{path:path}", unknown, methods=["POST", *OTHER_METHODS]),
        ],
        lifespan=lifespan,
        exception_handlers={Exception: respond, 404: respond, 405: respond},
    )
    app.state.dataplane = None
    return app


def dataplane_of(request: Request) -> Dataplane:
    return cast(Dataplane, request.app.state.dataplane)


async def classify(request: Request) -> Response:
    """POST the bytes of one image; the top classes come back."""
    request.scope["route_name"] = "classify"
    try:
        dataplane = dataplane_of(request)
        if "name" in request.path_params:
            dataplane.check_name(request.path_params["name"])
        top_k = _top_k(request)
        image = await read_file(request, dataplane.settings.max_body_bytes)
        answer = await dataplane.classify(image, top_k)
    except Exception as error:  # here and not in Starlette's outermost layer, which raises it again after the answer
        return await respond(request, error)
    return JSONResponse(
        {
            "model_name": answer.identity.model_name,
            "model_version": answer.identity.model_version,
            "package_digest": answer.identity.package_digest,
            "request_id": request_id(request),
            "predictions": [
                {"class_name": one.class_name, "label": one.label, "probability": one.probability}
                for one in answer.predictions
            ],
        }
    )


async def describe(request: Request) -> Response:
    """GET what serves."""
    request.scope["route_name"] = "describe"
    dataplane = dataplane_of(request)
    try:
        dataplane.check_name(request.path_params["name"])
    except NotFound as error:
        return await respond(request, error)
    return JSONResponse(dataplane.describe())


async def wrong_method(request: Request) -> Response:
    return await respond(request, HTTPException(405, "POST the bytes of one image", {"Allow": "POST"}))


async def unknown(request: Request) -> Response:
    return await respond(request, NotFound(f"{request.url.path}: no such path"))


def _top_k(request: Request) -> int | None:
    text = request.query_params.get("top_k")
    if text is None:
        return None
    if not text.isdecimal() or not text.isascii() or not 1 <= int(text) <= MAX_TOP_K:
        raise RequestRefused(400, "bad_top_k", f"top_k={text!r}: expected a number from 1 to {MAX_TOP_K}")
    return int(text)
