"""What every handler does around its own work: its route's name for the metrics, its errors as problems."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import Response

from bentos.kit.errors import respond

Handler = Callable[[Request], Awaitable[Response]]


def route(name: str) -> Callable[[Handler], Handler]:
    """Name the route, and answer what the handler raises with the problem that stands for it."""

    def named(handler: Handler) -> Handler:
        @functools.wraps(handler)
        async def handle(request: Request) -> Response:
            request.scope["route_name"] = name
            try:
                return await handler(request)
            except Exception as error:  # here and not in Starlette's outermost layer, which raises it after the answer
                return await respond(request, error)

        return handle

    return named
