"""The Redis that processes share, and whether it answers.

It is never waited for longer than `ANSWER_S`, and not asked at all while it is known to be away: then each process goes
on by itself. Only this module imports its client, and only where there is a Redis.
"""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bentos.kit.telemetry import BACKEND_UP

if TYPE_CHECKING:
    from redis.asyncio.connection import AbstractConnection

Command = tuple[str | bytes | int | float, ...]

ANSWER_S = 0.5
"""A Redis that takes longer is away."""
_CONNECT_S = 2.0
"""For the question whether it is back: no request waits for that one."""
_PAUSE_S = 1.0
"""So often it is asked."""
PREFIX = "darkroom:"
"""Of all keys."""
_PROBE: Command = ("SET", f"{PREFIX}probe", "", "PX", 1000)
"""One that can be read and not written, as a replica or one that is full, is of no use."""

logger = logging.getLogger("darkroom.redis")


class RedisAway(Exception):
    """It did not answer, or said that it would not."""


class _NoUrl(Exception):
    """The file holds none that the client takes."""


class RedisServer:
    """Belongs to one event loop. The file holds the URL, password included, and is read anew for each connection."""

    def __init__(self, url_file: Path) -> None:
        self.available = False
        self._url_file = url_file
        self._idle: list[AbstractConnection] = []
        self._returning: asyncio.Task[None] | None = None
        self._up = BACKEND_UP.labels("redis")

    async def open(self) -> None:
        """Find out whether it is there; a process begins to serve with the answer."""
        if (error := await self._tried()) is None:
            self._came()
        else:
            self._went(error)

    async def ask(self, commands: Sequence[Command]) -> list[Any]:
        """Replies to commands that are sent together. Raises RedisAway."""
        if not self.available:
            raise RedisAway
        try:
            return await self._exchange(commands, ANSWER_S)
        except _failures() as error:
            self._went(error)
            raise RedisAway from error

    async def close(self) -> None:
        self.available = False
        if self._returning is not None:
            self._returning.cancel()
        await self._hang_up()

    async def _exchange(self, commands: Sequence[Command], limit_s: float) -> list[Any]:
        from redis.exceptions import ConnectionError as ConnectionLost

        async with asyncio.timeout(limit_s):
            if self._idle:
                try:
                    return await self._converse(self._idle.pop(), commands)
                except ConnectionLost:
                    await self._hang_up()  # it was closed while nobody looked: that says nothing of the server
            return await self._converse(self._connection(), commands)

    async def _converse(self, connection: AbstractConnection, commands: Sequence[Command]) -> list[Any]:
        """The connection itself, and not the library's client over it, which does more for each command."""
        try:
            await connection.send_packed_command(connection.pack_commands(commands), check_health=False)
            replies = [await connection.read_response() for _ in commands]
        except BaseException:  # what still comes would be taken for answers to other questions
            await connection.disconnect(nowait=True)
            raise
        self._idle.append(connection)
        return replies

    def _connection(self) -> AbstractConnection:
        from redis.asyncio import ConnectionPool

        text = self._url_file.read_bytes()
        try:
            pool = ConnectionPool.from_url(text.decode().strip())
            made: AbstractConnection = pool.make_connection()  # type: ignore[no-untyped-call]
        except (ValueError, TypeError):  # whose texts quote it
            raise _NoUrl from None
        return made

    async def _hang_up(self) -> None:
        idle, self._idle = self._idle, []
        for connection in idle:
            await connection.disconnect(nowait=True)

    # --- away, and back ----------------------------------------------------------------------------------------------

    async def _tried(self) -> BaseException | None:
        try:
            await self._exchange([_PROBE], _CONNECT_S)
        except _failures() as error:
            return error
        return None

    def _came(self) -> None:
        self.available = True
        self._up.set(1)

    def _went(self, error: BaseException) -> None:
        """Say so once, and look for it until it is back."""
        self.available = False
        self._up.set(0)
        if self._returning is None:
            logger.warning(
                "Redis is away: each process goes by its share of a rate, and by its own cache",
                extra={"reason": reason(error), "url_file": str(self._url_file)},
            )
            self._returning = asyncio.create_task(self._await_return())

    async def _await_return(self) -> None:
        await self._hang_up()
        while True:
            await asyncio.sleep(_PAUSE_S)
            if await self._tried() is None:
                break
        logger.info("Redis is back")
        self._returning = None
        self._came()


def reason(error: BaseException) -> str:
    """Why it is away, without the URL: the library's own texts quote parts of it."""
    from redis.exceptions import AuthenticationError, ResponseError

    if isinstance(error, AuthenticationError | ResponseError):
        return str(error)[:200]  # the server's own words
    if isinstance(error, _NoUrl):
        return "the file holds no URL of the form redis://, rediss:// or unix://"
    cause = error if isinstance(error, OSError) else error.__context__
    if isinstance(cause, ssl.SSLError):
        return f"TLS: {cause.reason}"
    if isinstance(cause, OSError) and cause.errno is not None and cause.errno > 0:
        return os.strerror(cause.errno)
    return type(error).__name__


def _failures() -> tuple[type[Exception], ...]:
    from redis.exceptions import RedisError

    return (RedisError, OSError, TimeoutError, _NoUrl)
