"""API keys that this process has seen: asked about anew every second, believed for a while where nobody answers."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from bentos.kit.access.key_store import KeyStore, StoreAway
from bentos.kit.errors import RequestRefused
from pipelines.core.access import Credential

REFRESH_S = 0.5
"""From this age on, what is known of a key is asked for again, and meanwhile believed."""
STALE_S = 1.5
"""From this age on it is not believed: a revocation acts within two seconds."""
GRACE_S = 300.0
"""Where the store is away, keys that it vouched for within this time go on working."""
_PAUSE_S = 1.0
"""A store that was away is not asked again at once: every request would wait for it."""
_MAX_KNOWN = 10_000
_MAX_QUESTIONS = 32
"""Unknown keys being asked about at once: a flood of them must not become one of queries."""

logger = logging.getLogger("darkroom.access")


@dataclass
class _Known:
    credential: Credential | None
    """None: the store knows no such active key."""
    at: float


class KeyRing:
    """Belongs to one event loop."""

    def __init__(self, store: KeyStore, clock: Callable[[], float] = time.monotonic) -> None:
        self._store, self._clock = store, clock
        self._known: OrderedDict[str, _Known] = OrderedDict()
        self._asking: dict[str, asyncio.Task[_Known]] = {}
        self._away_until = 0.0

    async def find(self, digest: str) -> Credential | None:
        """The credential of a key, by its digest. Raises RequestRefused (503) where nobody can say."""
        known = self._known.get(digest)
        age = self._clock() - known.at if known is not None else STALE_S
        if known is not None and age < STALE_S:
            if age > REFRESH_S and self._clock() >= self._away_until and len(self._asking) < _MAX_QUESTIONS:
                self._ask(digest)
            return known.credential
        if self._clock() < self._away_until:
            return self._believed(known)
        if digest not in self._asking and len(self._asking) >= _MAX_QUESTIONS:
            raise RequestRefused(503, "overloaded", "too many unknown keys are being looked up", retry_after_s=1)
        try:
            # Shielded: others may wait for the same answer when this request is cancelled.
            return (await asyncio.shield(self._ask(digest))).credential
        except StoreAway:
            return self._believed(known)

    def _believed(self, known: _Known | None) -> Credential | None:
        if known is not None and known.credential is not None and self._clock() - known.at < GRACE_S:
            return known.credential
        raise RequestRefused(503, "keys_unavailable", "the key store does not answer; try again", retry_after_s=2)

    def _ask(self, digest: str) -> asyncio.Task[_Known]:
        task = self._asking.get(digest)
        if task is None:
            task = self._asking[digest] = asyncio.create_task(self._look_up(digest))
            task.add_done_callback(lambda done: self._settle(digest, done))
        return task

    async def _look_up(self, digest: str) -> _Known:
        asked = self._clock()
        return _Known(await self._store.find(digest), asked)

    def _settle(self, digest: str, done: asyncio.Task[_Known]) -> None:
        del self._asking[digest]
        if done.cancelled():
            return
        error = done.exception()
        if error is None:
            self._known[digest] = done.result()
            self._known.move_to_end(digest)
            while len(self._known) > _MAX_KNOWN:
                self._known.popitem(last=False)
        elif isinstance(error, StoreAway):
            if self._clock() >= self._away_until:
                logger.warning("the key store does not answer", extra={"reason": str(error)})
            self._away_until = self._clock() + _PAUSE_S
        else:
            logger.error("looking up a key failed", exc_info=error)
