"""WebSockets of uvicorn's, with what a client may make the process hold bounded while its messages arrive.

uvicorn bounds one message. It does not bound all connections together, how long a message takes, into how many
fragments it is cut, nor what it answers to a client that pings and does not read.
"""

from __future__ import annotations

import asyncio
import json
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.exceptions import InvalidHeader
from websockets.frames import CloseCode, Frame
from websockets.http11 import Response

from bentos.kit.budget import IN_FLIGHT
from bentos.kit.errors import Overloaded, Problem, problem_table
from bentos.kit.telemetry import accepted_request_id
from pipelines.core.limits import BODY_TIMEOUT_S

_MAX_FRAMES = 4096
"""Fragments of one message, messages that wait, and pings and pongs between two pings of ours (20 s): an empty one
costs a client 6 bytes."""
_FRAME_BYTES = 256
"""What a frame that waits takes beside its payload."""
_PIECE_BYTES = 16 * 1024
"""Read at once: uvloop brings up to 250 KB, and as empty frames they would keep all others waiting for 0.2 s."""


class BoundedFrames(WebSocketsSansIOProtocol):
    """One connection."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._share = IN_FLIGHT.growing(self._refuse)
        self._unread = 0
        """Bytes of messages that are complete and that the service has not taken yet."""
        self._num_controls = 0
        self._deadline: asyncio.TimerHandle | None = None
        self._make_refusal = self.conn.reject
        self.conn.reject = self._refusal  # type: ignore[method-assign]

    def _refusal(self, status: int, text: str) -> Response:  # noqa: ARG002
        """To what is no handshake: a problem, as everywhere, and not the library's text."""
        error = self.conn.handshake_exc
        if isinstance(error, InvalidHeader) and error.name == "Sec-WebSocket-Version":
            status = HTTPStatus.UPGRADE_REQUIRED  # RFC 6455, 4.2.2
        detail = str(error) if error is not None else HTTPStatus(status).phrase
        given = self.request.headers.get_all("X-Request-ID")
        request_id = accepted_request_id(given[0].encode("latin-1") if given else b"")
        problem = Problem(status=status, reason="bad_handshake" if status < 500 else "internal_error", detail=detail)
        response = self._make_refusal(status, json.dumps(problem_table(problem, request_id)))
        del response.headers["Content-Type"]
        response.headers.update({"Content-Type": "application/problem+json", "X-Request-ID": request_id})
        if status == HTTPStatus.UPGRADE_REQUIRED:
            response.headers["Sec-WebSocket-Version"] = "13"
        return response

    def data_received(self, data: bytes) -> None:
        for start in range(0, len(data), _PIECE_BYTES):
            super().data_received(data[start : start + _PIECE_BYTES])
            self._check_numbers()
            if self.close_sent or self.disconnected:
                self._release()
                return
        self._check_size()

    def _check_numbers(self) -> None:
        if len(self.frames) > _MAX_FRAMES:
            self._fail(CloseCode.MESSAGE_TOO_BIG, f"a message of more than {_MAX_FRAMES} fragments")
        elif self.queue.qsize() > _MAX_FRAMES:
            self._fail(CloseCode.TRY_AGAIN_LATER, f"more than {_MAX_FRAMES} messages wait")
        elif self._num_controls > _MAX_FRAMES:
            self._fail(CloseCode.POLICY_VIOLATION, f"more than {_MAX_FRAMES} pings and pongs within 20 s")

    def _check_size(self) -> None:
        unfinished = len(self.conn.reader.buffer) + (self.conn.current_size or 0) + _FRAME_BYTES * len(self.frames)
        try:
            self._share.grow_to(unfinished + self._unread)
        except Overloaded:
            self._refuse()
            return
        if not unfinished:
            self._stop_waiting()
        elif self._deadline is None:
            self._deadline = self.loop.call_later(BODY_TIMEOUT_S, self._check_slowness)

    def handle_ping(self) -> None:
        self._num_controls += 1
        super().handle_ping()

    def handle_pong(self, event: Frame) -> None:
        self._num_controls += 1
        super().handle_pong(event)

    def send_receive_event_to_app(self) -> None:
        if self.curr_msg_data_type == "text" and not self.close_sent:
            try:
                b"".join(self.frames).decode()
            except UnicodeDecodeError:  # uvicorn would log a traceback
                self._fail(CloseCode.INVALID_DATA, "a text is not UTF-8")
                return
        self._unread += sum(map(len, self.frames)) + _FRAME_BYTES
        self._stop_waiting()
        super().send_receive_event_to_app()

    async def receive(self) -> Any:
        message = await super().receive()
        if message["type"] == "websocket.receive":
            self._unread -= len(message.get("bytes") or message.get("text") or b"") + _FRAME_BYTES
        self._pace()
        return message

    async def send(self, message: Any) -> None:
        await super().send(message)
        self._pace()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._pace()

    def resume_writing(self) -> None:
        super().resume_writing()
        if not (self.read_paused or self.transport.is_closing()):
            self.transport.resume_reading()

    def _pace(self) -> None:
        """Who does not read our answers and pongs is not read from. uvicorn asks only whether messages are taken."""
        if not (self.writable.is_set() or self.transport.is_closing()):
            self.transport.pause_reading()

    def send_keepalive_ping(self) -> None:
        self._num_controls = 0
        super().send_keepalive_ping()
        self._abort_closing()

    def keepalive_timeout(self) -> None:
        super().keepalive_timeout()
        self._abort_closing()

    def _abort_closing(self) -> None:
        """A connection that closes waits for what it has still to send, and some clients never read it."""
        if self.transport.is_closing():
            self.loop.call_later(self.close_timeout, self.transport.abort)

    def shutdown(self) -> None:
        """The process ends: nothing more is read, and what is here already is answered before the connection closes.

        uvicorn would close at once.
        """
        if not self.handshake_complete or self.close_sent or self.disconnected:
            super().shutdown()
            return
        self.stop_keepalive()
        self._stop_waiting()
        self.read_paused = True
        self.transport.pause_reading()
        self.queue.put_nowait({"type": "websocket.disconnect", "code": CloseCode.SERVICE_RESTART})

    def connection_lost(self, exc: Exception | None) -> None:
        self._release()
        self._share.close()
        super().connection_lost(exc)

    def _check_slowness(self) -> None:
        self._deadline = None
        if self.read_paused or not self.writable.is_set():  # it is we who do not read
            self._deadline = self.loop.call_later(BODY_TIMEOUT_S, self._check_slowness)
        elif not (self.close_sent or self.disconnected):
            self._fail(CloseCode.POLICY_VIOLATION, f"a message did not arrive within {BODY_TIMEOUT_S:g} s")

    def _refuse(self) -> None:
        self._fail(CloseCode.TRY_AGAIN_LATER, "too many images are arriving")

    def _fail(self, code: CloseCode, reason: str) -> None:
        self._release()
        if self.close_sent or not self.writable.is_set():  # it has had its word, or would not hear it
            self.close_sent = True
            self.transport.abort()
            return
        self.conn.fail(code, reason)
        self.handle_parser_exception()

    def _stop_waiting(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _release(self) -> None:
        """Let go of every byte now: the connection refers to itself and waits for the collector, maybe for long."""
        self._stop_waiting()
        self._share.resize(0)
        self.frames = []
        # Nothing can be answered any more: of what waits, the service only hears that it is over.
        waiting = [self.queue.get_nowait() for _ in range(self.queue.qsize())]
        for message in waiting:
            if message["type"] != "websocket.receive":
                self.queue.put_nowait(message)
        self._unread = 0
        self.conn.events_received()
        if self.conn.parser_exc is not None:
            self.conn.parser_exc.__traceback__ = None
