"""Values that processes share, as bytes in Redis, behind what each keeps in memory.

A request waits for one at most `READ_S`, and never for the writing of one. Questions that come while others are under
way go together. Whatever is wrong with Redis or with what it holds is a miss.
"""

from __future__ import annotations

import asyncio
from typing import Generic, Protocol, TypeVar

from bentos.kit.shared.server import Command, RedisAway, RedisServer
from bentos.kit.telemetry import CACHE_LOOKUPS, SHARED_ANSWERS
from bentos.kit.tracing import say

V = TypeVar("V")

READ_S = 0.02
"""Making an answer anew takes little longer, and may be quicker."""
_MAX_LATE = 5
"""So many late answers in a row, and nobody asks for a while."""
_PAUSE_S = 1.0
_TOGETHER = 64
_GATHER_S = 0.05
"""A value waits so long for others to be written with it: alone it costs 0.4 CPU ms, with 63 others 0.02 to 0.04."""
_MAX_UNWRITTEN = 128
_TOO_LATE = b"too late"

_HIT, _MISS, _LATE, _WRONG = (CACHE_LOOKUPS.labels("redis", result) for result in ("hit", "miss", "late", "wrong"))
_WRITTEN, _DROPPED = (SHARED_ANSWERS.labels(result) for result in ("written", "dropped"))


class Codec(Protocol[V]):
    """How a value is written down."""

    def encode(self, key: str, value: V) -> bytes: ...

    def decode(self, key: str, data: bytes) -> V | None:
        """None for bytes that are not a value of this key."""


class SharedCache(Generic[V]):
    """Belongs to one event loop."""

    def __init__(self, server: RedisServer, codec: Codec[V], *, ttl_s: int) -> None:
        self._server, self._codec, self._ttl_s = server, codec, ttl_s
        self._asked: list[tuple[str, asyncio.Future[bytes | None]]] = []
        self._unwritten: dict[str, V] = {}
        self._reading: asyncio.Task[None] | None = None
        self._writing: asyncio.Task[None] | None = None
        self._num_late = 0
        self._again_at = 0.0

    async def get(self, key: str) -> V | None:
        loop = asyncio.get_running_loop()
        if not self._server.available or loop.time() < self._again_at:
            return None
        future: asyncio.Future[bytes | None] = loop.create_future()
        self._asked.append((key, future))
        if self._reading is None or self._reading.done():
            self._reading = loop.create_task(self._read())
        limit = loop.call_later(READ_S, _settle, future, _TOO_LATE)
        try:
            data = await future
        finally:
            limit.cancel()
        if data is _TOO_LATE:
            self._was_late(loop.time())
            return None
        self._num_late = 0
        return self._read_out(key, data)

    def _was_late(self, now: float) -> None:
        _LATE.inc()
        self._num_late += 1
        if self._num_late >= _MAX_LATE:
            # The next one decides alone.
            self._num_late, self._again_at = _MAX_LATE - 1, now + _PAUSE_S

    def _read_out(self, key: str, data: bytes | None) -> V | None:
        value = None if data is None else self._codec.decode(key, data)
        if value is not None:
            _HIT.inc()
            say("darkroom.cache_hit", True)
        else:
            (_MISS if data is None else _WRONG).inc()
        return value

    def put(self, key: str, value: V) -> None:
        """Share a value, soon; where too many wait to be written it is not shared."""
        if not self._server.available or len(self._unwritten) >= _MAX_UNWRITTEN:
            _DROPPED.inc()
            return
        self._unwritten[key] = value
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write())

    async def close(self) -> None:
        """Write what waits."""
        if self._writing is not None:
            await self._writing

    async def _read(self) -> None:
        while self._asked:
            asked = [one for one in self._asked[:_TOGETHER] if not one[1].done()]
            del self._asked[:_TOGETHER]
            if not asked:
                continue
            try:
                (values,) = await self._server.ask([("MGET", *(key for key, _ in asked))])
            except RedisAway:
                values = [None] * len(asked)
            for (_, future), value in zip(asked, values, strict=True):
                _settle(future, value)

    async def _write(self) -> None:
        await asyncio.sleep(_GATHER_S)
        while self._unwritten:
            keys = list(self._unwritten)[:_TOGETHER]
            # Nobody waits for the encoding either.
            commands = [self._set(key, self._unwritten.pop(key)) for key in keys]
            try:
                await self._server.ask(commands)
            except RedisAway:
                _DROPPED.inc(len(commands))
            else:
                _WRITTEN.inc(len(commands))

    def _set(self, key: str, value: V) -> Command:
        return ("SET", key, self._codec.encode(key, value), "EX", self._ttl_s)


def _settle(future: asyncio.Future[bytes | None], data: bytes | None) -> None:
    """Unless it is settled: its request may have been given up."""
    if not future.done():
        future.set_result(data)
