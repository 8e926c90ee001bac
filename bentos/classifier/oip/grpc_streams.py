"""Standard health and reflection whose streams end when the process does.

A stream of the libraries' own ends with its client, and would hold an ending process until its deadline.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Sequence
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

_STATUS = health_pb2.HealthCheckResponse


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    """grpc.health.v1: the named services serve until the process ends."""

    def __init__(self, names: Sequence[str], ending: asyncio.Event) -> None:
        self._names, self._ending = frozenset(names), ending

    async def Check(self, request: Any, context: Any) -> Any:  # noqa: N802
        if request.service not in self._names:
            await context.abort(grpc.StatusCode.NOT_FOUND)
        return _STATUS(status=_STATUS.NOT_SERVING if self._ending.is_set() else _STATUS.SERVING)

    async def Watch(self, request: Any, context: Any) -> None:  # noqa: N802
        """What is not known now may be later, says the protocol: it is no error."""
        if request.service not in self._names:
            await context.write(_STATUS(status=_STATUS.SERVICE_UNKNOWN))
            await self._ending.wait()
            return
        if not self._ending.is_set():
            await context.write(_STATUS(status=_STATUS.SERVING))
            await self._ending.wait()
        await context.write(_STATUS(status=_STATUS.NOT_SERVING))


class Reflection(reflection.aio.ReflectionServicer):  # type: ignore[misc]
    """grpc.reflection.v1alpha."""

    def __init__(self, names: Sequence[str], ending: asyncio.Event) -> None:
        super().__init__(names)
        self._ending = ending

    async def ServerReflectionInfo(self, request_iterator: AsyncIterable[Any], context: Any) -> AsyncIterator[Any]:  # noqa: N802
        async for answer in super().ServerReflectionInfo(_until(self._ending, request_iterator), context):
            yield answer


def add_to(server: grpc.aio.Server, service: str, model: str, ending: asyncio.Event) -> None:
    """Health of the service, the model and the whole; and what the server's services are."""
    health_pb2_grpc.add_HealthServicer_to_server(Health(("", service, model), ending), server)
    shown = (service, health.SERVICE_NAME, reflection.SERVICE_NAME)
    reflection_pb2_grpc.add_ServerReflectionServicer_to_server(Reflection(shown, ending), server)


async def _until(ending: asyncio.Event, requests: AsyncIterable[Any]) -> AsyncIterator[Any]:
    """Requests while the process does not end."""
    over, given = asyncio.ensure_future(ending.wait()), aiter(requests)
    request: asyncio.Future[Any] = over
    try:
        while True:
            request = asyncio.ensure_future(anext(given, None))
            await asyncio.wait((request, over), return_when=asyncio.FIRST_COMPLETED)
            if not request.done() or request.result() is None:
                return
            yield request.result()
    finally:
        over.cancel()
        request.cancel()
