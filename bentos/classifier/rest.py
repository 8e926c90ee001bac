"""REST over the dataplane: bodies in, JSON out. Nothing is decided here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from bentos.classifier.dataplane import Classification, Dataplane
from bentos.classifier.identity import Identity
from bentos.classifier.prediction_log import Asker
from bentos.kit.bodies import read_file
from bentos.kit.errors import Ending, RequestRefused
from bentos.kit.front import caller_of
from bentos.kit.queries import top_k

MAX_TOP_K = 100_000


def dataplane_of(request: Request) -> Dataplane:
    """Raises Ending where the model is gone already."""
    dataplane = cast("Dataplane | None", request.app.state.dataplane)
    if dataplane is None:
        raise Ending
    return dataplane


async def classify(request: Request) -> Response:
    """POST the bytes of one image; the top classes come back."""
    dataplane = named(request)
    most, threshold = options(request.query_params)
    image = await read_file(request, dataplane.settings.max_body_bytes)
    caller = caller_of(request)
    answer = await dataplane.classify(image, most, threshold, asker=Asker(caller.credential.id, caller.request_id))
    return JSONResponse({**who(answer.identity, caller.request_id), "predictions": predictions(answer)})


async def embed(request: Request) -> Response:
    """POST the bytes of one image; its embedding comes back."""
    dataplane = named(request)
    image = await read_file(request, dataplane.settings.max_body_bytes)
    caller = caller_of(request)
    answer = await dataplane.embed(image, asker=Asker(caller.credential.id, caller.request_id))
    return JSONResponse({**who(answer.identity, caller.request_id), "embedding": answer.values})


async def describe(request: Request) -> Response:
    """GET what serves."""
    return JSONResponse(named(request).describe())


async def openapi(request: Request) -> Response:
    """GET the OpenAPI document of what serves."""
    from bentos.classifier.openapi import document

    return JSONResponse(document(named(request)))


def predictions(answer: Classification) -> list[dict[str, Any]]:
    return [
        {"class_name": one.class_name, "label": one.label, "probability": one.probability} for one in answer.predictions
    ]


def options(query: Mapping[str, str]) -> tuple[int | None, float]:
    """`top_k` and `threshold` of a query. Raises RequestRefused."""
    return top_k(query, MAX_TOP_K), _threshold(query.get("threshold"))


def named(request: Request) -> Dataplane:
    """The dataplane, where the path names its model and version or none. Raises NotFound."""
    dataplane, path = dataplane_of(request), request.path_params
    if "name" in path:
        dataplane.check_name(path["name"], path.get("version", ""))
    return dataplane


def who(identity: Identity, request_id: str) -> dict[str, Any]:
    return {
        "model_name": identity.model_name,
        "model_version": identity.model_version,
        "package_digest": identity.package_digest,
        "request_id": request_id,
    }


def _threshold(text: str | None) -> float:
    if text is None:
        return 0.0
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise RequestRefused(400, "bad_threshold", f"threshold={text!r}: expected a probability from 0 to 1")
    return value
