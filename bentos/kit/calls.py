"""What every gRPC call passes first: its id, who asks, whether they may, what it took. As `front` is for HTTP."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar
from typing import Any

import grpc
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from bentos.kit import tracing
from bentos.kit.access import Caller, Guard
from bentos.kit.errors import RequestRefused, grpc_status, logged
from bentos.kit.telemetry import CANCELLED, accepted_request_id, count
from pipelines.core.access import Scope

CALLER: ContextVar[Caller] = ContextVar("caller")
"""Set before a call's message is read."""

_CODE = "rpc.grpc.status_code"

Context = Any
"""grpc.aio.ServicerContext, which has no published types."""


class Admission(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Refuses calls before their messages are read. `scopes` by full method name; others ask to read models."""

    def __init__(self, guard: Guard, scopes: Mapping[str, Scope], model: str) -> None:
        self._guard, self._scopes, self._model = guard, scopes, model

    async def intercept_service(self, continuation: Callable[[Any], Awaitable[Any]], details: Any) -> Any:
        started = time.perf_counter()
        given = dict(details.invocation_metadata or ())
        request_id = accepted_request_id(_bytes(given.get("x-request-id", "")))
        span = _trace(details.method, _bytes(given.get("traceparent", "")), request_id, started)
        scope = self._scopes.get(details.method, Scope.READ_MODELS)
        authorization = _bytes(given["authorization"]) if "authorization" in given else None
        try:
            CALLER.set(await self._guard.admit(authorization, scope, self._model, request_id))
        except Exception as error:
            refused = error

            async def refuse(_messages: Any, context: Context) -> None:
                await _abort(context, refused, request_id, "admission-grpc", started)

            found = await continuation(details)
            if found is not None and (found.request_streaming or found.response_streaming):
                return grpc.stream_stream_rpc_method_handler(refuse)
            return grpc.unary_unary_rpc_method_handler(refuse)
        if span is not None:
            span.name = details.method.removeprefix("/")
        return await continuation(details)


def answered(
    handler: Callable[[Any], Awaitable[Any]], route: str, message: Any
) -> Callable[[bytes, Context], Awaitable[Any]]:
    """The handler with a request id, its errors as gRPC statuses, counts and times.

    `message` is the class of what it is given. The bytes are read here: where the library reads them, bytes that are
    no message are an unknown error with Python's own text, without an id, and counted by nobody.
    """

    async def handle(data: bytes, context: Context) -> Any:
        started = time.perf_counter()
        request_id = CALLER.get().request_id
        context.set_trailing_metadata((("x-request-id", request_id),))
        reason, status = "cancelled", CANCELLED
        try:
            answer = await handler(read(message, data))
            reason, status = "none", 200
            tracing.say(_CODE, 0)
            return answer
        except Exception as error:
            reason = ""
            await _abort(context, error, request_id, route, started)
        finally:
            if reason:
                count(route, status, reason, time.perf_counter() - started, request_id)

    return handle


def streamed(
    handler: Callable[[Any, Context], Awaitable[None]], route: str
) -> Callable[[Any, Context], Awaitable[None]]:
    """The same for a handler that reads and writes a stream itself; only refusals are counted."""

    async def handle(given: Any, context: Context) -> None:
        started = time.perf_counter()
        request_id = CALLER.get().request_id
        context.set_trailing_metadata((("x-request-id", request_id),))
        try:
            await handler(given, context)
        except Exception as error:
            await _abort(context, error, request_id, route, started)

    return handle


def read(message: Any, data: bytes) -> Any:
    """The message of a generated class. Raises RequestRefused."""
    try:
        return message.FromString(data)
    except DecodeError as error:
        name = message.DESCRIPTOR.full_name
        raise RequestRefused(
            400, "bad_message", f"the message is no {name}: it is cut off, or of another type"
        ) from error


async def _abort(context: Context, error: Exception, request_id: str, route: str, started: float) -> None:
    problem = logged(error, request_id)
    metadata = [("x-request-id", request_id), ("x-darkroom-reason", problem.reason)]
    if problem.retry_after_s is not None:
        metadata.append(("retry-after", str(problem.retry_after_s)))
    code = grpc_status(problem)
    tracing.say(_CODE, code.value[0])
    count(route, problem.status, problem.reason, time.perf_counter() - started, request_id)
    await context.abort(code, problem.detail, tuple(metadata))


def _trace(method: str, traceparent: bytes, request_id: str, started: float) -> tracing.Span | None:
    """A stream (health, reflection) ends nowhere here, and so sends no span unless it is refused."""
    span = tracing.begin(traceparent, started)
    if span is not None:
        # Until somebody is let in: what a stranger makes up is no name.
        span.name = "gRPC"
        service, _, called = method.removeprefix("/").rpartition("/")
        span.attributes |= {"rpc.system": "grpc", "rpc.service": service, "rpc.method": called}
        span.attributes["darkroom.request_id"] = request_id
    return span


def _bytes(value: str | bytes) -> bytes:
    return value if isinstance(value, bytes) else value.encode()
