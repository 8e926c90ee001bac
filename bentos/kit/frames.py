"""WebSockets of uvicorn's, with what a client may make the process hold bounded while its messages arrive.

uvicorn bounds one message. It does not bound all connections together, how long a message takes, nor into how many
fragments it is cut.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import CloseCode

from bentos.kit.budget import IN_FLIGHT
from bentos.kit.errors import Overloaded
from pipelines.core.limits import BODY_TIMEOUT_S

_MAX_FRAGMENTS = 4096
"""Of one message: an empty one costs a client 6 bytes and us as many, without end."""


class BoundedFrames(WebSocketsSansIOProtocol):
    """One connection."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._share = IN_FLIGHT.growing(self._refuse)
        self._unread = 0
        """Bytes of messages that are complete and that the service has not taken yet."""
        self._deadline: asyncio.TimerHandle | None = None

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.close_sent or self.disconnected:
            self._release()
            return
        unfinished = len(self.conn.reader.buffer) + (self.conn.current_size or 0)
        if len(self.frames) > _MAX_FRAGMENTS:
            self._fail(CloseCode.MESSAGE_TOO_BIG, f"a message of more than {_MAX_FRAGMENTS} fragments")
            return
        try:
            self._share.grow_to(unfinished + self._unread)
        except Overloaded:
            self._refuse()
            return
        if not unfinished:
            self._stop_waiting()
        elif self._deadline is None:
            self._deadline = self.loop.call_later(BODY_TIMEOUT_S, self._check_slowness)

    def send_receive_event_to_app(self) -> None:
        self._unread += sum(map(len, self.frames))
        self._stop_waiting()
        super().send_receive_event_to_app()

    async def receive(self) -> Any:
        message = await super().receive()
        if message["type"] == "websocket.receive":
            self._unread -= len(message.get("bytes") or message.get("text") or b"")
        return message

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
        if self.read_paused:  # it is we who do not read
            self._deadline = self.loop.call_later(BODY_TIMEOUT_S, self._check_slowness)
        elif not (self.close_sent or self.disconnected):
            self._fail(CloseCode.POLICY_VIOLATION, f"a message did not arrive within {BODY_TIMEOUT_S:g} s")

    def _refuse(self) -> None:
        self._fail(CloseCode.TRY_AGAIN_LATER, "too many images are arriving")

    def _fail(self, code: CloseCode, reason: str) -> None:
        self._release()
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
        self.conn.events_received()
        if self.conn.parser_exc is not None:
            self.conn.parser_exc.__traceback__ = None
