"""Darkroom's database as a serving process sees it: functions that its role may call, and nothing else."""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from bentos.kit.database import LazyPool
from pipelines.core.access import Credential

if TYPE_CHECKING:
    import asyncpg

T = TypeVar("T")

_TIMEOUT_S = 0.5
"""A store that takes longer is away: requests wait for it."""
ABOUT_VOUCHED, ABOUT_STRANGERS = 2, 1
"""Questions at once about keys that the store has vouched for, and about others."""
_CONNECTIONS = ABOUT_VOUCHED + ABOUT_STRANGERS + 1
"""One more says what was used: nothing waits for a connection."""


class StoreAway(Exception):
    """The store did not answer."""


@dataclass(frozen=True, kw_only=True)
class ActiveKey:
    """What the store says of a key that is good now."""

    credential: Credential
    expires_at: datetime.datetime | None = None
    """With its time zone; None: never."""


class KeyStore(Protocol):
    """Where keys are looked up and use is counted."""

    async def find(self, digest: str) -> ActiveKey | None:
        """An active key, by the SHA-256 of the key. Raises StoreAway."""

    async def add_usage(self, day: datetime.date, used: Mapping[str, int]) -> dict[str, int]:
        """Add to what credentials have used on a day; returns what all processes have counted. Raises StoreAway."""

    async def close(self) -> None: ...


class PostgresKeyStore:
    """Connects when it is first asked; belongs to one event loop."""

    def __init__(self, url_file: Path) -> None:
        """The file holds the URL, password included."""
        self._pool = LazyPool(url_file, connections=_CONNECTIONS, application_name="darkroom serving")

    async def find(self, digest: str) -> ActiveKey | None:
        row = await self._ask(lambda pool: pool.fetchrow("SELECT * FROM find_active_key($1)", digest))
        if row is None:
            return None
        credential = Credential(
            id=row["id"],
            role=row["role"],
            models=frozenset(row["models"]) or None,
            per_minute=row["per_minute"],
            per_day=row["per_day"],
        )
        return ActiveKey(credential=credential, expires_at=row["expires_at"])

    async def add_usage(self, day: datetime.date, used: Mapping[str, int]) -> dict[str, int]:
        names, numbers = list(used), list(used.values())
        rows = await self._ask(lambda pool: pool.fetch("SELECT * FROM add_usage($1, $2, $3)", names, day, numbers))
        return {row["credential"]: row["images"] for row in rows}

    async def close(self) -> None:
        self._pool.close()

    async def _ask(self, question: Callable[[asyncpg.Pool], Awaitable[T]]) -> T:
        import asyncpg

        try:
            async with asyncio.timeout(_TIMEOUT_S):
                return await question(await self._pool.get())
        except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            raise StoreAway(f"{type(error).__name__}: {error}") from error
