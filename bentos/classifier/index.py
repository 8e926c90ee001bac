"""What there is behind the gateway, for whoever has a key."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from bentos.classifier.rest import dataplane_of
from bentos.kit.front import caller_of
from pipelines.core.access import DEFAULT_HEADER, DEPLOYED_HEADER

_PATHS = {
    "classify": "POST the bytes of one image to /v1/models/{name}/classify or /v1/classify",
    "classify_batch": "POST a form's files, or a tar, to /v1/models/{name}/classify/batch; JSON lines come back",
    "embed": "POST the bytes of one image to /v1/models/{name}/embed or /v1/embed",
    "similar": "POST the bytes of one image to /v1/models/{name}/similar or /v1/similar; the nearest stored come",
    "similar_openapi": "/v1/similar/openapi.json",
    "stream": "WebSocket /v1/models/{name}/stream or /v1/stream: an image a frame, a JSON text back",
    "openapi": "/v1/models/{name}/openapi.json or /v1/openapi.json",
    "open_inference_protocol": "/v2 by REST, inference.GRPCInferenceService by gRPC, both on this port",
}


async def index(request: Request) -> Response:
    """GET the models that the credential is good for.

    A process knows its own; of the others the gateway tells it with the request. Without a gateway anybody could say
    anything in its place, and would only hear it back.
    """
    own = dataplane_of(request).identity.model_name
    knows = caller_of(request).credential.knows
    models = [name for name in request.headers.get(DEPLOYED_HEADER, own).split(",") if knows(name)]
    default = request.headers.get(DEFAULT_HEADER, own)
    return JSONResponse(
        {
            "service": "darkroom",
            "models": {name: f"/v1/models/{name}/classify" for name in models},
            "default_model": default if default in models else None,
            **_PATHS,
        }
    )
