"""The stored embeddings as this process sees them: tables that its role may read for a search, and nothing else."""

from __future__ import annotations

import asyncio
import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING

from bentos.kit.database import LazyPool
from bentos.kit.errors import RequestRefused
from pipelines.core import neighbours
from pipelines.core.embedding import Embeddings
from pipelines.core.neighbours import Neighbour

if TYPE_CHECKING:
    import asyncpg

_TIMEOUT_S = 5.0
"""A million rows on a busy machine take less; a store that takes longer is away."""
_PAUSE_S = 1.0
"""A store that was away is not asked again at once: every request would wait for it."""
_CONNECTIONS = 4

logger = logging.getLogger("darkroom.similar")


class VectorsAway(RequestRefused):
    """The store did not answer."""

    def __init__(self) -> None:
        super().__init__(503, "features_unavailable", "the feature store does not answer; try again", retry_after_s=2)


class VectorStore:
    """Connects when it is first asked; belongs to one event loop."""

    def __init__(self, url_file: Path) -> None:
        """The file holds the URL, password included."""
        self._pool = LazyPool(
            url_file,
            connections=_CONNECTIONS,
            application_name="darkroom similar",
            # What nobody waits for any more is not computed either.
            statement_timeout=str(int(_TIMEOUT_S * 1000)),
        )
        self._away_until = 0.0
        self._away = False

    async def nearest(self, table: str, vector: Embeddings, top: int) -> list[Neighbour]:
        """The stored images nearest to a unit vector [D], best first; ties in order of image_id.

        Raises NotFound where nothing was ever stored, VectorsAway where the store does not answer.
        """
        import asyncpg

        if time.monotonic() < self._away_until:
            raise VectorsAway
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                found = await self._search(table, vector, top)
        except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            # What is wrong with one table (its first load is under way, say) keeps nobody from the others.
            if not isinstance(error, asyncpg.PostgresError) or isinstance(error, asyncpg.PostgresConnectionError):
                self._away_until = time.monotonic() + _PAUSE_S
            if not self._away:
                reason = f"{type(error).__name__}: {error}"
                logger.warning("the feature store does not answer", extra={"reason": reason})
            self._away = True
            raise VectorsAway from error
        if self._away:
            logger.info("the feature store answers again")
        self._away = False
        return found

    async def _search(self, table: str, vector: Embeddings, top: int) -> list[Neighbour]:
        pool = await self._pool.get()
        connection = await pool.acquire()
        try:
            num_rows = await connection.fetchval(neighbours.COUNT, table)
            rows = [] if num_rows is None else await _rows(connection, table, num_rows, vector, top)
        except BaseException:
            # At once: to end it in good order is to wait for a server that may hang.
            connection.terminate()
            raise
        finally:
            await pool.release(connection)
        if num_rows is None:
            raise neighbours.nothing_stored(table)
        return neighbours.neighbours(tuple(row) for row in rows)

    async def close(self) -> None:
        self._pool.close()


async def _rows(
    connection: asyncpg.Connection, table: str, num_rows: int, vector: Embeddings, top: int
) -> list[asyncpg.Record]:
    await connection.execute("BEGIN READ ONLY")
    await connection.execute(neighbours.TUNE, *neighbours.tuning(top, exact=neighbours.is_exact(num_rows)))
    query = neighbours.nearest_sql(table, len(vector))
    rows: list[asyncpg.Record] = await connection.fetch(query, *neighbours.nearest_parameters(vector, top))
    await connection.execute("COMMIT")
    return rows
