"""HTTP of uvicorn's, with the head of a request bounded: uvicorn bounds neither its size nor its time."""

from __future__ import annotations

import asyncio
import json
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from bentos.kit.errors import Problem, problem_table
from bentos.kit.telemetry import accepted_request_id

HEAD_TIMEOUT_S = 8.0
"""A little more than the gateway's, so that it is the gateway that says so."""
_MAX_HEAD_BYTES = 64 * 1024
"""Twice the gateway's, which adds headers of its own."""


class BoundedHeads(HttpToolsProtocol):
    """One connection."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._in_head = True
        self._quiet_bytes = 0
        """What came since the last of which something was made: of a head, of trailers, of a chunk's extensions."""
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        # As long as between two requests: the gateway may have opened it for one that was taken back.
        self._deadline = self.loop.call_later(self.timeout_keep_alive, transport.close)

    def data_received(self, data: bytes) -> None:
        if self._in_head and not self._quiet_bytes:
            self._stop_waiting()
            self._deadline = self.loop.call_later(HEAD_TIMEOUT_S, self._give_up)
        self._quiet_bytes += len(data)
        super().data_received(data)
        if self._quiet_bytes > _MAX_HEAD_BYTES:
            self._refuse(431, "headers_too_large", f"the headers are larger than {_MAX_HEAD_BYTES:,} bytes")

    def on_headers_complete(self) -> None:
        self._in_head, self._quiet_bytes = False, 0
        self._stop_waiting()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._quiet_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._in_head, self._quiet_bytes = True, 0
        super().on_message_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def _should_upgrade(self) -> bool:
        # RFC 6455, 4.2.1; uvicorn goes on as if it were HTTP/1.1.
        return bool(super()._should_upgrade() and self.parser.get_http_version() == "1.1")

    def _stop_waiting(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _give_up(self) -> None:
        self._refuse(408, "too_slow", f"the headers did not arrive within {HEAD_TIMEOUT_S:g} s")

    def _refuse(self, status: int, reason: str, detail: str) -> None:
        """With a word where no answer to an earlier request is on its way."""
        if self.transport.is_closing():
            return
        self._stop_waiting()
        problem = Problem(status=status, reason=reason, detail=detail)
        body = json.dumps(problem_table(problem, accepted_request_id(b""))).encode()
        head = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nContent-Type: application/problem+json\r\n"
        head += f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        if self.cycle is None or self.cycle.response_complete:
            self.transport.write(head.encode() + body)
        self.transport.close()
