"""Standard health and reflection whose streams end when the process does.

A stream of the libraries' own ends with its client, and would hold an ending process until its deadline. Theirs have no
bound either, and anybody may watch.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterable, AsyncIterator, Iterator, Sequence
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2

from bentos.kit.calls import answered, read, streamed
from bentos.kit.errors import RequestRefused
from pipelines.core.errors import NotFound

_STATUS = health_pb2.HealthCheckResponse

MAX_STREAMS = 100
"""Open at once in a process: so many that watch, and so many reflections."""
_AGAIN_S = 20.0
"""A status that has not changed is said again, or the gateway would end whoever watches: 60 s without a byte."""


class Places:
    """How many streams of a kind may be open."""

    def __init__(self, limit: int) -> None:
        self._limit, self._num_taken = limit, 0

    @contextlib.contextmanager
    def one(self) -> Iterator[None]:
        """A place, for the block. Raises RequestRefused where all are taken."""
        if self._num_taken >= self._limit:
            told = f"{self._num_taken} streams of this kind are open in this process; try again later"
            raise RequestRefused(429, "too_many_streams", told, retry_after_s=1)
        self._num_taken += 1
        try:
            yield
        finally:
            self._num_taken -= 1


class Health:
    """grpc.health.v1: the named services serve until the process ends."""

    def __init__(self, names: Sequence[str], ending: asyncio.Event, again_s: float = _AGAIN_S) -> None:
        self._names, self._ending, self._again_s = frozenset(names), ending, again_s
        self._places = Places(MAX_STREAMS)

    async def check(self, request: Any) -> Any:
        if request.service not in self._names:
            raise NotFound(f"service {request.service[:100]!r}: there is none in this process")
        return _STATUS(status=_STATUS.NOT_SERVING if self._ending.is_set() else _STATUS.SERVING)

    async def watch(self, data: bytes, context: Any) -> None:
        """What is not known now may be later, says the protocol: it is no error."""
        known = read(health_pb2.HealthCheckRequest, data).service in self._names
        with self._places.one():
            while not self._ending.is_set():
                await context.write(_STATUS(status=_STATUS.SERVING if known else _STATUS.SERVICE_UNKNOWN))
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._ending.wait(), self._again_s)
            await context.write(_STATUS(status=_STATUS.NOT_SERVING if known else _STATUS.SERVICE_UNKNOWN))


class Reflection(reflection.aio.ReflectionServicer):  # type: ignore[misc]
    """grpc.reflection.v1alpha."""

    def __init__(self, names: Sequence[str], ending: asyncio.Event) -> None:
        super().__init__(names)
        self._ending, self._places = ending, Places(MAX_STREAMS)

    async def answer(self, given: AsyncIterable[bytes], context: Any) -> None:
        with self._places.one():
            async for answer in self.ServerReflectionInfo(_requests(self._ending, given), context):
                await context.write(answer)


def handlers(service: str, model: str, ending: asyncio.Event) -> Sequence[grpc.GenericRpcHandler]:
    """Health of the service, the model and the whole; and what the server's services are."""
    shown = (service, health.SERVICE_NAME, reflection.SERVICE_NAME)
    asked, reflected = Health(("", service, model), ending), Reflection(shown, ending)
    to_health = {
        "Check": grpc.unary_unary_rpc_method_handler(
            answered(asked.check, "health-grpc", health_pb2.HealthCheckRequest),
            response_serializer=_STATUS.SerializeToString,
        ),
        "Watch": grpc.unary_stream_rpc_method_handler(
            streamed(asked.watch, "health-watch-grpc"), response_serializer=_STATUS.SerializeToString
        ),
    }
    to_reflection = {
        "ServerReflectionInfo": grpc.stream_stream_rpc_method_handler(
            streamed(reflected.answer, "reflection-grpc"),
            response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
        )
    }
    return (
        grpc.method_handlers_generic_handler(health.SERVICE_NAME, to_health),
        grpc.method_handlers_generic_handler(reflection.SERVICE_NAME, to_reflection),
    )


async def _requests(ending: asyncio.Event, given: AsyncIterable[bytes]) -> AsyncIterator[Any]:
    """Requests while the process does not end."""
    over, coming = asyncio.ensure_future(ending.wait()), aiter(given)
    data: asyncio.Future[Any] = over
    try:
        while True:
            data = asyncio.ensure_future(anext(coming, None))
            await asyncio.wait((data, over), return_when=asyncio.FIRST_COMPLETED)
            if not data.done() or data.result() is None:
                return
            yield read(reflection_pb2.ServerReflectionRequest, data.result())
    finally:
        over.cancel()
        data.cancel()
