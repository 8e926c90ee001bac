"""How often somebody may ask: a rate (images a minute) and a quota (images a day), by credential.

The rate is a bucket of tokens in each process, which gets its share of the rate; with Redis, `shared_rates` has one for
all. The quota is counted in the database, where all processes add up what they gave, every second; while it is away
each goes on from what it last heard. It is a day's, and stays there with Redis, too, which may lose what it holds.
"""

from __future__ import annotations

import asyncio
import datetime
import logging
import math
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from bentos.kit.access.key_store import KeyStore, StoreAway
from bentos.kit.errors import RequestRefused
from bentos.kit.telemetry import LIMITED
from pipelines.core.access import Credential

BURST_S = 10.0
"""A bucket holds what its rate gives in this time."""
_FLUSH_S = 1.0
MAX_BUCKETS = 10_000

logger = logging.getLogger("darkroom.access")


def too_many(detail: str, retry_after_s: float) -> RequestRefused:
    return RequestRefused(429, "too_many_requests", detail, retry_after_s=max(1, math.ceil(retry_after_s)))


def rate_exceeded(credential: Credential, wait_s: float) -> RequestRefused:
    """Counted here. `wait_s`: until there is an image in the credential's bucket."""
    LIMITED.labels("rate", credential.role).inc()
    return too_many(f"more than {credential.per_minute} images a minute", wait_s)


@dataclass
class _Bucket:
    tokens: float
    at: float


@dataclass
class Rates:
    """Buckets by credential. `share`: of each rate, what this process may give (1 over the number of processes)."""

    share: float = 1.0
    clock: Callable[[], float] = time.monotonic
    _buckets: OrderedDict[str, _Bucket] = field(default_factory=OrderedDict)

    def take(self, credential: Credential, num_images: int) -> None:
        """Raises RequestRefused (429) where the bucket is empty.

        A request of many images takes more than there is and leaves a debt: it is late images that wait, and a request
        larger than any bucket is possible.
        """
        if credential.per_minute is None:
            return
        rate = credential.per_minute * self.share / 60
        size = max(1.0, rate * BURST_S)
        now = self.clock()
        bucket = self._buckets.get(credential.id) or self._keep(credential.id, _Bucket(size, now))
        bucket.tokens = min(size, bucket.tokens + (now - bucket.at) * rate)
        bucket.at = now
        if bucket.tokens < 1:
            raise rate_exceeded(credential, (1 - bucket.tokens) / rate)
        bucket.tokens -= num_images
        self._buckets.move_to_end(credential.id)

    def level(self, credential: Credential, tokens: float) -> None:
        """Learn what all processes together have left; from its share of that this one would go on alone."""
        self._keep(credential.id, _Bucket(tokens * self.share, self.clock()))

    def _keep(self, credential_id: str, bucket: _Bucket) -> _Bucket:
        self._buckets[credential_id] = bucket
        self._buckets.move_to_end(credential_id)
        if len(self._buckets) > MAX_BUCKETS:
            self._buckets.popitem(last=False)
        return bucket


@dataclass
class _Used:
    known: int = 0
    """What all processes together had used when the database was last asked."""
    unsaid: int = 0
    """Given since then by this one."""


class Quotas:
    """What credentials with a quota have used today. Belongs to one event loop."""

    def __init__(self, store: KeyStore | None, now: Callable[[], datetime.datetime] | None = None) -> None:
        self._store = store
        self._now = now or (lambda: datetime.datetime.now(datetime.UTC))
        self._day = self._now().date()
        self._used: dict[str, _Used] = {}
        self._preparing: dict[str, asyncio.Task[None]] = {}
        self._flushing: asyncio.Task[None] | None = None
        self._saying = asyncio.Lock()

    def take(self, credential: Credential, num_images: int) -> None:
        """Raises RequestRefused (429) where the day's quota is used up."""
        if credential.per_day is None:
            return
        now = self._today()
        used = self._used.setdefault(credential.id, _Used())
        if used.known + used.unsaid + num_images > credential.per_day:
            LIMITED.labels("quota", credential.role).inc()
            midnight = datetime.datetime.combine(self._day + datetime.timedelta(days=1), datetime.time(), datetime.UTC)
            raise too_many(f"more than {credential.per_day} images a day", (midnight - now).total_seconds())
        used.unsaid += num_images
        if self._store is not None and self._flushing is None:
            self._flushing = asyncio.create_task(self._flush_soon())

    async def prepare(self, credential: Credential) -> None:
        """Learn what a credential has used before this process sees it for the first time today."""
        if credential.per_day is None or self._store is None:
            return
        self._today()
        task = self._preparing.get(credential.id)
        if task is None and credential.id not in self._used:
            self._used[credential.id] = _Used()
            task = self._preparing[credential.id] = asyncio.create_task(self._flush())
            task.add_done_callback(lambda _: self._preparing.pop(credential.id))
        if task is not None:
            # Shielded: others may wait for the same answer when this request is cancelled.
            await asyncio.shield(task)

    def _today(self) -> datetime.datetime:
        """What time it is; a new day begins with nothing used, and nothing known of it."""
        now = self._now()
        if now.date() != self._day:
            self._day, self._used = now.date(), {}
        return now

    async def _flush_soon(self) -> None:
        await asyncio.sleep(_FLUSH_S)
        self._flushing = None
        await self._flush()

    async def _flush(self) -> None:
        """Say what was given, and hear what all gave; where nobody answers, it is said later."""
        assert self._store is not None
        async with self._saying:
            day, used = self._day, self._used
            said = {name: one.unsaid for name, one in used.items() if one.unsaid or not one.known}
            for name, number in said.items():
                used[name].unsaid -= number
                used[name].known += number
            try:
                totals = await self._store.add_usage(day, said) if said else {}
            except StoreAway as error:
                logger.warning("usage cannot be counted", extra={"reason": str(error)})
                for name, number in said.items():
                    used[name].unsaid += number
                    used[name].known -= number
                return
            for name, total in totals.items():
                used[name].known = total

    async def close(self) -> None:
        if self._flushing is not None:
            self._flushing.cancel()
        if self._store is not None and any(one.unsaid for one in self._used.values()):
            await self._flush()
