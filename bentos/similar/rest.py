"""REST over the dataplane: an image in, JSON out. Nothing is decided here."""

from __future__ import annotations

from typing import Any, cast

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from bentos.kit.bodies import read_file
from bentos.kit.errors import Ending
from bentos.kit.front import caller_of
from bentos.kit.queries import top_k
from bentos.similar.dataplane import MAX_TOP_K, Answer, Dataplane


def dataplane_of(request: Request) -> Dataplane:
    """Raises Ending where the process is about to end."""
    dataplane = cast("Dataplane | None", request.app.state.dataplane)
    if dataplane is None:
        raise Ending
    return dataplane


async def similar(request: Request) -> Response:
    """POST the bytes of one image; the nearest stored ones come back."""
    dataplane = dataplane_of(request)
    most = top_k(request.query_params, MAX_TOP_K)
    image = await read_file(request, dataplane.settings.max_body_bytes)
    name = request.path_params.get("name", dataplane.settings.default_model)
    return JSONResponse(body(await dataplane.similar(name, image, most), caller_of(request).request_id))


async def openapi(request: Request) -> Response:
    """GET the OpenAPI document of this service."""
    from bentos.similar.openapi import document

    return JSONResponse(document(dataplane_of(request).settings.default_model))


def body(answer: Answer, request_id: str) -> dict[str, Any]:
    return {
        "model_name": answer.model_name,
        "request_id": request_id,
        "embedding": answer.embedding,
        "embedding_version": answer.embedding_version,
        "package_digest": answer.package_digest,
        "view": answer.view,
        "dataset_digest": answer.dataset_digest,
        "neighbours": [
            {
                "image_id": one.image_id,
                "similarity": round(one.similarity, 6),
                "label": one.label,
                "event_timestamp": one.event_timestamp.isoformat(),
                "source_uri": one.source_uri,
            }
            for one in answer.neighbours
        ],
    }
