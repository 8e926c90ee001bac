"""HTTP/1.1 of uvicorn's, with the heads of requests bounded in bytes and time, as the gateway bounds them.

uvicorn bounds neither, nor what stands between the chunks of a body and behind them.
"""

from __future__ import annotations

import asyncio
import json
import time
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http import httptools_impl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from bentos.kit.errors import RequestRefused, problem_of, problem_table
from bentos.kit.telemetry import accepted_request_id, count
from bentos.kit.whole_answers import WholeAnswers

MAX_HEAD_BYTES = 64 * 1024
"""Twice the gateway's."""
HEAD_TIMEOUT_S = 8.0
"""The gateway's own, 6 s, comes first."""

httptools_impl.RequestResponseCycle = WholeAnswers  # type: ignore[misc]
"""By this name uvicorn's protocol makes what answers a request."""


class BoundedHeads(HttpToolsProtocol):
    """One connection."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._is_new = True
        self._unused = 0
        """Bytes that came since a head was whole, or a part of a body came."""
        self._used = self._begun = self._in_body = False
        self._since = time.perf_counter()
        """When the head began."""
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        # As long as between two requests: the gateway may have opened it for one that was taken back.
        self._deadline = self.loop.call_later(self.timeout_keep_alive, transport.close)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._is_new:
            self._is_new = False
            self._stop_waiting()
        self._used = False
        super().data_received(data)
        if self.transport.is_closing():
            return
        self._unused = 0 if self._used else self._unused + len(data)
        if self._unused > MAX_HEAD_BYTES:
            self._refuse(431, "head_too_large", f"the request's head is larger than {MAX_HEAD_BYTES:,} bytes")
        elif not self._in_body and (self._begun or not self._used):
            self._wait()

    # --- what the parser says ---------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self._begun, self._since = True, time.perf_counter()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._used, self._begun, self._in_body = True, False, True
        self._stop_waiting()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._used = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._used, self._in_body = True, False
        super().on_message_complete()

    def _should_upgrade(self) -> bool:
        # RFC 6455, 4.2.1; uvicorn goes on as if it were HTTP/1.1.
        return bool(super()._should_upgrade() and self.parser.get_http_version() == "1.1")

    # --- limits -----------------------------------------------------------------------------------------------------

    def _wait(self) -> None:
        """For the rest of a head; one that comes in one piece, as nearly all do, needs no timer."""
        if self._deadline is None:
            self._deadline = self.loop.call_later(HEAD_TIMEOUT_S, self._give_up)

    def _stop_waiting(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _give_up(self) -> None:
        self._refuse(408, "too_slow", f"the request's head did not arrive within {HEAD_TIMEOUT_S:g} s")

    def _refuse(self, status: int, reason: str, detail: str) -> None:
        """Nothing more is read. Where a request is under way already, its answer is not ours to begin."""
        self._stop_waiting()
        if self.transport.is_closing():
            return
        if self._in_body or not (self.cycle is None or self.cycle.response_complete):
            self.transport.abort()
            return
        request_id = accepted_request_id(b"")
        body = json.dumps(problem_table(problem_of(RequestRefused(status, reason, detail)), request_id)).encode()
        head = (
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\ncontent-type: application/problem+json\r\n"
            f"content-length: {len(body)}\r\nx-request-id: {request_id}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()
        count("other", status, reason, time.perf_counter() - self._since, request_id)
