"""The protocol's REST paths."""

from __future__ import annotations

import zlib

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from bentos.classifier.dataplane import Dataplane
from bentos.classifier.oip import large_requests, rest_messages
from bentos.classifier.oip.inference import EXTENSIONS, SERVER, Read, infer, metadata, read, server_version
from bentos.classifier.oip.large_requests import LARGE_BYTES, aside
from bentos.classifier.rest import dataplane_of, named
from bentos.kit.bodies import read_held
from bentos.kit.budget import IN_FLIGHT
from bentos.kit.errors import RequestRefused
from bentos.kit.front import Endpoint, caller_of, get, post
from pipelines.core.access import Scope

_BODY_SLACK = 1024**2
"""Beyond the images' bytes: the request's own words, and base64."""


def endpoints() -> list[Endpoint]:
    found = [
        get("oip-metadata", "/v2", Scope.READ_MODELS, server_metadata),
        # Load balancers ask these.
        get("oip-health", "/v2/health/live", Scope.PUBLIC, live),
        get("oip-health", "/v2/health/ready", Scope.PUBLIC, ready),
    ]
    for model in ("/v2/models/{name}", "/v2/models/{name}/versions/{version}"):
        found += [
            get("oip-metadata", model, Scope.READ_MODELS, model_metadata),
            get("oip-health", f"{model}/ready", Scope.READ_MODELS, model_ready),
            post("oip-infer", f"{model}/infer", Scope.PREDICT, model_infer),
        ]
    return found


async def live(_: Request) -> Response:
    return JSONResponse({"live": True})


async def ready(request: Request) -> Response:
    dataplane_of(request)
    return JSONResponse({"ready": True})


async def server_metadata(_: Request) -> Response:
    return JSONResponse({"name": SERVER, "version": server_version(), "extensions": list(EXTENSIONS)})


async def model_ready(request: Request) -> Response:
    dataplane = named(request)
    return JSONResponse({"name": dataplane.identity.model_name, "ready": True})


async def model_metadata(request: Request) -> Response:
    return JSONResponse(metadata(named(request)))


async def model_infer(request: Request) -> Response:
    dataplane = named(request)
    answer = await infer(dataplane, await _read(request, dataplane), caller_of(request))
    return _respond(answer_body=rest_messages.write_answer(answer), accepted=request.headers.get("accept-encoding", ""))


async def _read(request: Request, dataplane: Dataplane) -> Read:
    """The request's tensors. Its body, and what parsing makes of it, are counted until they are made."""
    headers, path, settings = request.headers, request.path_params, dataplane.settings
    limit = settings.max_body_bytes + _BODY_SLACK
    body, share = await read_held(request, limit)
    with share:
        encoding = headers.get("content-encoding", "").strip().lower()
        if encoding not in ("", "identity"):
            # Asked for afterwards, when it is known how much it is: one at a time has not asked yet.
            body = await aside(rest_messages.uncompressed, body, encoding, limit)
            share.grow_to(len(body))
        split = rest_messages.json_bytes(body, headers.get(rest_messages.HEADER_LENGTH))
        given = (body, split, path["name"], path.get("version", ""))
        if split <= LARGE_BYTES:
            return read(dataplane, rest_messages.read_request(*given))
        spec = dataplane.classifier.package.preprocessing
        num_bytes = len(body) + await aside(large_requests.memory_bytes, body[:split], spec, settings.max_images)
        if num_bytes > IN_FLIGHT.max_bytes:
            raise RequestRefused(
                413, "too_many_bytes", f"{num_bytes:,} bytes of memory for this JSON; send binary tensor data"
            )
        share.grow_to(num_bytes)
        return await aside(lambda: read(dataplane, rest_messages.read_request(*given, large_requests.loads)))


def _respond(answer_body: tuple[bytes, int | None], accepted: str) -> Response:
    body, header_length = answer_body
    headers: dict[str, str] = {}
    if header_length is not None:
        headers[rest_messages.HEADER_LENGTH] = str(header_length)
    # What Triton's client asks for by response_compression_algorithm, and nothing else does so alone.
    encoding = accepted.strip().lower()
    if encoding in ("gzip", "deflate"):
        compressor = zlib.compressobj(1, wbits=31 if encoding == "gzip" else 15)
        body = compressor.compress(body) + compressor.flush()
        headers["Content-Encoding"] = encoding
    media_type = "application/json" if header_length is None else "application/octet-stream"
    return Response(body, headers=headers, media_type=media_type)
