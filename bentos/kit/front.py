"""What every request by HTTP or WebSocket passes first: its id, its route, who asks, whether they may, what it took.

It stands before BentoML's own routing, so that there is one list of paths, each with the scope that it asks for, and
what is not on the list is refused. Successful requests are in the gateway's access log, with the same id.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Send
from starlette.types import Scope as AsgiScope
from starlette.websockets import WebSocket

from bentos.kit import tracing
from bentos.kit.access import Caller
from bentos.kit.errors import respond
from bentos.kit.telemetry import REQUEST_ID, accepted_request_id, count
from pipelines.core.access import Scope
from pipelines.core.errors import NotFound

CALLER = "darkroom.caller"
"""Key of the ASGI scope."""
_VOUCH = "x-envoy-upstream-healthchecked-cluster"
_PROBES = ("/livez", "/readyz", "/healthz")
"""Anybody may ask them."""
_SWITCHED = 101
"""Status of an accepted WebSocket; its frames have spans of their own."""

Handler = Callable[[Request], Awaitable[Response]]
SocketHandler = Callable[[WebSocket], Awaitable[None]]


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """One thing that can be asked for."""

    name: str
    """Of the route in metrics and logs."""
    path: str
    """With `{name}` for a segment that varies."""
    scope: Scope
    handler: Handler | None = None
    method: str = "POST"
    socket: SocketHandler | None = None
    """Instead of a handler: by WebSocket."""
    any_model: bool = False
    """It is about no model, so credentials for other models are good for it, too."""


def get(name: str, path: str, scope: Scope, handler: Handler) -> Endpoint:
    return Endpoint(name=name, path=path, scope=scope, handler=handler, method="GET")


def post(name: str, path: str, scope: Scope, handler: Handler) -> Endpoint:
    return Endpoint(name=name, path=path, scope=scope, handler=handler)


@dataclass
class Table:
    """Endpoints by path, looked up by its length and last segment and not by trying patterns one after another."""

    endpoints: Sequence[Endpoint]
    _exact: dict[str, dict[str, Endpoint]] = field(default_factory=dict)
    _varying: dict[tuple[int, str], dict[tuple[str, ...], dict[str, Endpoint]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for one in self.endpoints:
            if "{" in one.path:
                segments = tuple(one.path.split("/"))
                last = "" if segments[-1].startswith("{") else segments[-1]
                by_method = self._varying.setdefault((len(segments), last), {}).setdefault(segments, {})
            else:
                by_method = self._exact.setdefault(one.path, {})
            by_method["WEBSOCKET" if one.socket else one.method] = one

    def find(self, path: str) -> tuple[Mapping[str, Endpoint], dict[str, str]]:
        """Endpoints of a path by method, and its varying segments; no endpoints for a path that is not listed."""
        if (exact := self._exact.get(path)) is not None:
            return exact, {}
        segments = path.split("/")
        for last in (segments[-1], ""):
            for pattern, by_method in self._varying.get((len(segments), last), {}).items():
                if (given := _matched(pattern, segments)) is not None:
                    return by_method, given
        return {}, {}


def _matched(pattern: Sequence[str], segments: Sequence[str]) -> dict[str, str] | None:
    given: dict[str, str] = {}
    for expected, found in zip(pattern, segments, strict=True):
        if expected.startswith("{") and found:
            given[expected[1:-1]] = found
        elif expected != found:
            return None
    return given


class Front:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp, *, table: Table, served: Starlette, cluster: str = "") -> None:
        """`served.state` says whether it is `ready`, and then has a `guard` and a `model_name`."""
        self.app = app
        self._table = table
        self._served = served
        self._cluster = cluster

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            if scope["path"] in _PROBES and scope["method"] in ("GET", "HEAD"):
                await self._probed(scope["path"])(scope, receive, send)
            else:
                await self._http(scope, receive, send)
        elif scope["type"] == "websocket":
            await self._websocket(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    def _probed(self, path: str) -> Response:
        """Alive as long as it can say so; ready while it has a model."""
        if path != "/readyz":
            return JSONResponse({"live": True})
        if not self._served.state.ready:
            return JSONResponse({"ready": False}, 503)
        # Envoy takes a process only where it names the cluster that it belongs to.
        return JSONResponse({"ready": True}, headers={_VOUCH: self._cluster} if self._cluster else None)

    async def _http(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        started = time.perf_counter()
        endpoints, headers, request_id = self._begin(scope)
        endpoint = endpoints.get(scope["method"])
        _trace(scope["method"], endpoint, headers, request_id, started)
        status = 500

        async def observed_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id.encode())]
            await send(message)

        request = Request(scope, receive, observed_send)
        try:
            try:
                await self._admit(endpoint, scope, headers)
                if endpoint is None or endpoint.handler is None:
                    raise _no_endpoint(scope["path"], endpoints)
                response = await endpoint.handler(request)
            except Exception as error:
                response = await respond(request, error)
            await response(scope, receive, observed_send)
        finally:
            reason = str(scope.get("problem_reason", "none"))
            seconds = time.perf_counter() - started
            count(endpoint.name if endpoint else "other", status, reason, seconds, request_id, scope["path"])

    async def _websocket(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        started = time.perf_counter()
        endpoints, headers, request_id = self._begin(scope)
        endpoint = endpoints.get("WEBSOCKET")
        span = _trace("GET", endpoint, headers, request_id, started)
        socket = WebSocket(scope, receive, send)
        try:
            await self._admit(endpoint, scope, headers)
            if endpoint is None or endpoint.socket is None:
                raise _no_endpoint(scope["path"], {})
        except Exception as error:
            request = Request({**scope, "type": "http", "method": "GET"}, receive)
            response = await respond(request, error)
            reason = str(request.scope["problem_reason"])
            count("stream", response.status_code, reason, time.perf_counter() - started, request_id, scope["path"])
            response.headers["x-request-id"] = request_id
            await receive()  # the connection's own message comes before any answer
            await socket.send_denial_response(response)
            return
        try:
            await endpoint.socket(socket)
        finally:
            if span is not None:
                span.end(_SWITCHED, "none")

    def _begin(self, scope: AsgiScope) -> tuple[Mapping[str, Endpoint], Mapping[bytes, bytes], str]:
        headers = dict(scope["headers"])
        request_id = accepted_request_id(headers.get(b"x-request-id", b""))
        endpoints, scope["path_params"] = self._table.find(scope["path"])
        scope[REQUEST_ID], scope["app"] = request_id, self._served
        return endpoints, headers, request_id

    async def _admit(self, endpoint: Endpoint | None, scope: AsgiScope, headers: Mapping[bytes, bytes]) -> None:
        """Who may not read models does not learn either which paths there are."""
        state = self._served.state
        wanted = endpoint.scope if endpoint else Scope.READ_MODELS
        model = None if endpoint and endpoint.any_model else scope["path_params"].get("name", state.model_name)
        scope[CALLER] = await state.guard.admit(headers.get(b"authorization"), wanted, model, scope[REQUEST_ID])


def _trace(
    method: str, endpoint: Endpoint | None, headers: Mapping[bytes, bytes], request_id: str, started: float
) -> tracing.Span | None:
    span = tracing.begin(headers.get(b"traceparent", b""), started)
    if span is not None:
        # The route and never the path: what a client makes up is no name.
        span.name = f"{method} {endpoint.path}" if endpoint else "HTTP"
        span.status_key = "http.response.status_code"
        span.attributes |= {"http.request.method": method, "darkroom.request_id": request_id}
        if endpoint is not None:
            span.attributes["http.route"] = endpoint.path
    return span


def caller_of(request: HTTPConnection) -> Caller:
    """Who was let in with a request."""
    return cast("Caller", request.scope[CALLER])


def _no_endpoint(path: str, endpoints: Mapping[str, Endpoint]) -> Exception:
    allowed = ", ".join(sorted({*endpoints} - {"WEBSOCKET"}))
    if allowed:
        return HTTPException(405, f"this path takes {allowed}", {"Allow": allowed})
    return NotFound(f"{path}: no such path")
