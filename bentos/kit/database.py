"""Connections to PostgreSQL for processes that begin, and go on, while it is away."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncpg


class LazyPool:
    """Connects when it is first asked; belongs to one event loop."""

    def __init__(self, url_file: Path, *, connections: int, **server_settings: str) -> None:
        """The file holds the URL, password included."""
        self._url_file, self._connections, self._server_settings = url_file, connections, server_settings
        self._pool: asyncpg.Pool | None = None
        self._connecting = asyncio.Lock()

    async def get(self) -> asyncpg.Pool:
        """Raises OSError, TimeoutError, asyncpg.PostgresError and asyncpg.InterfaceError where there is no database."""
        import asyncpg

        async with self._connecting:
            if self._pool is None:
                self._pool = await asyncpg.create_pool(
                    self._url_file.read_text().strip(),
                    min_size=0,
                    max_size=self._connections,
                    # A pooler between us and the server may give each statement to another connection.
                    statement_cache_size=0,
                    server_settings=self._server_settings,
                )
            return self._pool

    def close(self) -> None:
        """At once: to end connections in good order is to wait for a server that may hang."""
        if self._pool is not None:
            self._pool.terminate()
