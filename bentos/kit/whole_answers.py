"""Answers by HTTP/1.1 whose head and body are written together.

uvicorn writes one and then the other: a system call more, and a client that is woken for a head alone. With a model
that takes next to nothing that was a quarter of what serving adds to a request.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

if TYPE_CHECKING:
    from uvicorn._types import ASGISendEvent


class WholeAnswers(RequestResponseCycle):
    """One request and its answer. The head of an answer of known length waits for what comes next."""

    _held: _Held | None = None

    async def send(self, message: ASGISendEvent) -> None:
        """As ASGI has it."""
        held = self._held
        if held is None and _has_length(message):
            self._held = _Held(self.transport)
            self.transport = cast("asyncio.Transport", self._held)
        await super().send(message)
        if held is not None:
            held.flush()  # an answer to HEAD has no body that the head could go with
            self._held, self.transport = None, held.transport


class _Held:
    """What an answer needs of a transport. Keeps what is written first until there is more, or the end."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self.transport = transport
        self._head: bytes | None = None

    def write(self, data: bytes) -> None:
        if self._head is None:
            self._head = data
        else:
            self.transport.write(self._head + data)
            self._head = b""

    def flush(self) -> None:
        if self._head:
            self.write(b"")

    def close(self) -> None:
        self.flush()
        self.transport.close()


def _has_length(message: ASGISendEvent) -> bool:
    headers = cast("list[tuple[bytes, bytes]]", message.get("headers", []))
    return any(name == b"content-length" for name, _ in headers)
