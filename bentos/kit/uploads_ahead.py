"""The files of one request, read ahead of whoever works on them.

They are read as fast as they come: many clients send all of them before they read an answer, and the gateway gives a
body 14 s. What waits is part of what the process may hold, and like a body that arrives it is given up where others
need the room.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from types import TracebackType

from starlette.requests import Request

from bentos.kit.budget import IN_FLIGHT
from bentos.kit.errors import Overloaded
from bentos.kit.uploads import Upload, uploads

_PATIENCE_S = 6.0
"""For room, in all: less than half of what the gateway gives a body."""
_LOOK_AGAIN_S = 0.05


class Ahead:
    """Reads from entry to exit, as a context. Belongs to one event loop."""

    def __init__(self, request: Request, *, max_file_bytes: int, max_bytes: int) -> None:
        self.arrived: asyncio.Queue[Upload | Exception | None] = asyncio.Queue()
        """Files; then what ended the body before its end, if anything did; then None."""
        self._request = request
        self._max_file_bytes, self._max_bytes = max_file_bytes, max_bytes
        self._share = IN_FLIGHT.growing(self._give_up)
        self._unanswered: deque[Upload] = deque()
        self._patience_s = _PATIENCE_S
        self._reading: asyncio.Timeout | None = None

    async def __aenter__(self) -> Ahead:
        self.gone = asyncio.create_task(self._read())
        """Done when the client has gone."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.gone.cancel()
        try:
            await asyncio.wait((self.gone,))
        finally:
            self._share.close()
            self._forget()

    async def _read(self) -> None:
        try:
            async with asyncio.timeout(None) as self._reading:
                await self._read_files()
        except Exception as error:
            if not self._share.lost:  # else `_give_up` has said so
                self._end(error)
        else:
            self._end(None)
        finally:
            self._reading = None
        # What a refused body still has is thrown away: a client that sends all of it first can then read its answers.
        while (await self._request.receive())["type"] != "http.disconnect":
            pass

    async def _read_files(self) -> None:
        limits = {"max_file_bytes": self._max_file_bytes, "max_bytes": self._max_bytes}
        async with contextlib.aclosing(uploads(self._request, self._share, **limits)) as arriving:
            async for upload in arriving:
                self._unanswered.append(upload)
                self.arrived.put_nowait(upload)
                await self._room()

    async def _room(self) -> None:
        """While others may need it more, wait until our own files are answered; not without end, whatever they do."""
        while self._patience_s > 0 and IN_FLIGHT.crowded and self._is_answering():
            self._patience_s -= _LOOK_AGAIN_S
            await asyncio.sleep(_LOOK_AGAIN_S)

    def _is_answering(self) -> bool:
        while self._unanswered and not self._unanswered[0].held:
            self._unanswered.popleft()
        return bool(self._unanswered)

    def _give_up(self) -> None:
        self._forget()
        self._end(Overloaded(IN_FLIGHT.used, what="bytes"))
        if self._reading is not None:
            self._reading.reschedule(0)

    def _forget(self) -> None:
        while not self.arrived.empty():
            upload = self.arrived.get_nowait()
            if isinstance(upload, Upload):
                upload.drop()
        self._unanswered.clear()

    def _end(self, error: Exception | None) -> None:
        if error is not None:
            self.arrived.put_nowait(error)
        self.arrived.put_nowait(None)
