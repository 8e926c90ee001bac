"""API keys that this process has seen: asked about anew every second, believed for a while where nobody answers.

Anybody can make a text that looks like a key. Keys that the store has vouched for are remembered and asked about apart
from all others, so that these, however many come, take neither a place nor a turn from them.
"""

from __future__ import annotations

import asyncio
import datetime
import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from bentos.kit.access.key_store import ABOUT_STRANGERS, ABOUT_VOUCHED, ActiveKey, KeyStore, StoreAway
from bentos.kit.errors import RequestRefused
from pipelines.core.access import Credential

REFRESH_S = 0.5
"""From this age on, what is known of a key is asked for again, and meanwhile believed."""
STALE_S = 1.5
"""From this age on it is not believed: a revocation acts within two seconds."""
GRACE_S = 300.0
"""Where the store is away, keys that it vouched for within this time go on working, those that expire meanwhile not."""
_PAUSE_S = 1.0
"""A store that was away is not asked again at once: every request would wait for it."""
MAX_KNOWN = 10_000
"""Of vouched keys, and again of others."""
MAX_QUESTIONS = 32
"""Unknown keys being asked about at once: a flood of them must not become one of queries."""

logger = logging.getLogger("darkroom.access")


@dataclass(frozen=True)
class _Answer:
    key: ActiveKey | None
    """None: the store knows no such active key."""
    at: float
    """When it was asked."""


class KeyRing:
    """Belongs to one event loop."""

    def __init__(
        self,
        store: KeyStore,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime.datetime] | None = None,
    ) -> None:
        """`clock` tells ages, `now` whether a key has expired."""
        self._clock = clock
        self._now = now or (lambda: datetime.datetime.now(datetime.UTC))
        self._vouched: OrderedDict[str, _Answer] = OrderedDict()
        self._refused: OrderedDict[str, _Answer] = OrderedDict()
        self._about_vouched = _Questions(store, clock, self._learn, at_once=ABOUT_VOUCHED)
        self._about_strangers = _Questions(store, clock, self._learn, at_once=ABOUT_STRANGERS)

    async def find(self, digest: str) -> Credential | None:
        """The credential of a key, by its digest. Raises RequestRefused (503) where nobody can say."""
        known = self._vouched.get(digest)
        if known is None:
            return await self._meet(digest)
        age = self._clock() - known.at
        if age < STALE_S:
            if age > REFRESH_S and not self._about_vouched.paused:
                self._about_vouched.ask(digest)
            return self._credential(known)
        try:
            return self._credential(await self._about_vouched.answer(digest))
        except StoreAway:
            credential = self._credential(known)
            if credential is not None and self._clock() - known.at >= GRACE_S:
                raise _unavailable() from None
            return credential

    async def _meet(self, digest: str) -> Credential | None:
        """A key that nobody has vouched for."""
        refused = self._refused.get(digest)
        if refused is not None and self._clock() - refused.at < STALE_S:
            return None
        if self._about_strangers.num_asked >= MAX_QUESTIONS and not self._about_strangers.is_asked(digest):
            raise RequestRefused(503, "overloaded", "too many unknown keys are being looked up", retry_after_s=1)
        try:
            return self._credential(await self._about_strangers.answer(digest))
        except StoreAway:
            raise _unavailable() from None

    def _credential(self, answer: _Answer) -> Credential | None:
        key = answer.key
        if key is None or (key.expires_at is not None and key.expires_at <= self._now()):
            return None
        return key.credential

    def _learn(self, digest: str, answer: _Answer) -> None:
        into, out_of = (self._refused, self._vouched) if answer.key is None else (self._vouched, self._refused)
        out_of.pop(digest, None)
        into[digest] = answer
        into.move_to_end(digest)
        if len(into) > MAX_KNOWN:
            into.popitem(last=False)


class _Questions:
    """Of one kind. Whether the store answers them is told from them alone: others may wait, and so come too late."""

    def __init__(
        self, store: KeyStore, clock: Callable[[], float], learn: Callable[[str, _Answer], None], *, at_once: int
    ) -> None:
        self._store, self._clock, self._learn = store, clock, learn
        # They wait here and not for a connection: what is late is then the store, and not its turn.
        self._turn = asyncio.Semaphore(at_once)
        self._asked: dict[str, asyncio.Task[_Answer]] = {}
        self._paused_until = float("-inf")

    @property
    def paused(self) -> bool:
        """The store was away a moment ago."""
        return self._clock() < self._paused_until

    @property
    def num_asked(self) -> int:
        return len(self._asked)

    def is_asked(self, digest: str) -> bool:
        return digest in self._asked

    def ask(self, digest: str) -> asyncio.Task[_Answer]:
        """Once, however many want to know."""
        task = self._asked.get(digest)
        if task is None:
            task = self._asked[digest] = asyncio.create_task(self._look_up(digest))
            task.add_done_callback(lambda done: self._settle(digest, done))
        return task

    async def answer(self, digest: str) -> _Answer:
        """Raises StoreAway."""
        if self.paused:
            raise StoreAway("it did not answer a moment ago")
        # Shielded: others may wait for the same answer when this request is cancelled.
        return await asyncio.shield(self.ask(digest))

    async def _look_up(self, digest: str) -> _Answer:
        async with self._turn:
            if self.paused:
                raise StoreAway("it did not answer a moment ago")
            at = self._clock()
            try:
                answer = _Answer(await self._store.find(digest), at)
            except StoreAway as error:
                if not self.paused:
                    logger.warning("the key store does not answer", extra={"reason": str(error)})
                self._paused_until = self._clock() + _PAUSE_S
                raise
            self._learn(digest, answer)
            return answer

    def _settle(self, digest: str, done: asyncio.Task[_Answer]) -> None:
        del self._asked[digest]
        error = None if done.cancelled() else done.exception()
        if error is not None and not isinstance(error, StoreAway):
            logger.error("looking up a key failed", exc_info=error)


def _unavailable() -> RequestRefused:
    return RequestRefused(503, "keys_unavailable", "the key store does not answer; try again", retry_after_s=2)
