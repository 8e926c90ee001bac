"""Rates that all processes of a deployment keep together: a bucket of each credential in Redis.

A process gives a few images on credit and says so every half second, so that a request does not wait for Redis while
its bucket is far from empty. What was given is always taken from the bucket, below nothing if need be: over time no
more comes out of it than flows in. All processes together are ahead of it by at most one image each, or by half a
second of the rate where that is more. Where a bucket is nearly empty every image is asked for, and one that is known to
be empty is not asked. Nobody holds anything back: what one process does not use is there for the others.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from bentos.kit.access.limits import BURST_S, MAX_BUCKETS, Rates, rate_exceeded
from bentos.kit.shared.server import PREFIX, Command, RedisAway, RedisServer
from pipelines.core.access import Credential

_SETTLE_S = 0.5
"""What was given on credit is said after this time at the latest."""
_FRESH_S = 1.0
"""What was heard of a bucket longer ago is good for one image."""
_CREDIT = 0.05
"""Of a bucket, that all processes may be ahead of it. On credit an image costs 1 µs, asked for 100 µs of CPU."""
_BELIEVED_S = 1.0
"""A bucket that was empty is looked at again after this time, however long it needs: its rate may have been raised."""
_TOGETHER = 256

# The time at which the bucket will be full, in microseconds, is all there is to know (GCRA); the key goes when it is.
# A hundredth less than an image counts as one: what is left of rounding. A debt is a day's at most.
_TAKE = """
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local rate, size = ARGV[1] / 60000000, tonumber(ARGV[2])
local full = math.max(now, tonumber(redis.call('GET', KEYS[1]) or '') or 0) + ARGV[3] / rate
local granted = 0
for place = 4, #ARGV do
  if size - (full - now) * rate < 0.99 then break end
  full = full + ARGV[place] / rate
  granted = granted + 1
end
full = math.min(full, now + 86400000000)
if full > now then
  redis.call('SET', KEYS[1], string.format('%.0f', full), 'PX', math.ceil((full - now) / 1000))
end
return {granted, string.format('%.3f', size - (full - now) * rate)}
"""


@dataclass(slots=True, eq=False)
class _Bucket:
    """What a process knows of one."""

    credential: Credential
    key: str
    rate: float
    """Images a second."""
    size: float
    left: float = 0.0
    """In Redis, when it was last heard."""
    heard_at: float = -math.inf
    given: int = 0
    """On credit, and not yet heard to be taken from the bucket."""
    asked: list[tuple[int, asyncio.Future[bool | None]]] = field(default_factory=list)

    def wait_s(self, now: float) -> float:
        """Until it holds an image."""
        return (1 - self.left) / self.rate - (now - self.heard_at)

    def is_empty(self, now: float) -> bool:
        return self.left < 1 and self.wait_s(now) > 0 and now - self.heard_at < _BELIEVED_S

    def credit(self, now: float, share: float) -> float:
        """Images that this process may be ahead of the bucket."""
        if self.left * share < 1:
            return 0.0
        return max(1.0, min(self.left, self.size * _CREDIT) * share) if now - self.heard_at < _FRESH_S else 1.0


class SharedRates:
    """Belongs to one event loop. While Redis is away, `local` decides, which goes on from what was last heard."""

    def __init__(
        self,
        server: RedisServer,
        local: Rates,
        *,
        scope: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`scope`: whose processes share. A deployment has buckets of its own, as it has without Redis: it may be a
        shadow, which gets copies of what others answer."""
        self._server, self._local, self._scope, self._clock = server, local, scope, clock
        self._buckets: OrderedDict[tuple[str, int], _Bucket] = OrderedDict()
        self._due: dict[_Bucket, None] = {}
        self._urgent = False
        self._timer: asyncio.TimerHandle | None = None
        self._settling: asyncio.Task[None] | None = None

    async def take(self, credential: Credential, num_images: int) -> None:
        """As `Rates.take`. Raises RequestRefused (429)."""
        if credential.per_minute is None:
            return
        if not self._server.available:
            self._local.take(credential, num_images)
            return
        bucket = self._bucket(credential, credential.per_minute)
        now = self._clock()
        if bucket.is_empty(now):
            raise rate_exceeded(credential, bucket.wait_s(now))
        credit = bucket.credit(now, self._local.share)
        if bucket.given + num_images <= credit:
            bucket.given += num_images
            self._settle(bucket, urgent=bucket.given * 2 > credit > 1)
            return
        granted = await self._ask(bucket, num_images)
        if granted is None:
            self._local.take(credential, num_images)
        elif not granted:
            raise rate_exceeded(credential, bucket.wait_s(self._clock()))

    async def close(self) -> None:
        """Say what is unsaid."""
        if self._timer is not None:
            self._timer.cancel()
        if self._due:
            self._hurry()
        if self._settling is not None:
            await self._settling

    def _bucket(self, credential: Credential, per_minute: int) -> _Bucket:
        name = (credential.id, per_minute)
        bucket = self._buckets.get(name)
        if bucket is None:
            rate = per_minute / 60
            digest = hashlib.sha256(f"{self._scope}\0{credential.id}".encode()).hexdigest()
            bucket = _Bucket(credential, f"{PREFIX}rate:{digest}", rate, max(1.0, rate * BURST_S))
            self._buckets[name] = bucket
            if len(self._buckets) > MAX_BUCKETS:
                self._buckets.popitem(last=False)
        self._buckets.move_to_end(name)
        return bucket

    async def _ask(self, bucket: _Bucket, num_images: int) -> bool | None:
        """Whether the bucket had enough; None where nobody knows."""
        future: asyncio.Future[bool | None] = asyncio.get_running_loop().create_future()
        bucket.asked.append((num_images, future))
        self._settle(bucket, urgent=True)
        return await future

    # --- what was given and what is asked, of all buckets together --------------------------------------------------

    def _settle(self, bucket: _Bucket, *, urgent: bool) -> None:
        self._due[bucket] = None
        if urgent:
            self._hurry()
        elif self._timer is None and self._settling is None:
            self._timer = asyncio.get_running_loop().call_later(_SETTLE_S, self._hurry)

    def _hurry(self) -> None:
        self._urgent = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._settling is None:
            self._settling = asyncio.create_task(self._settle_all())

    async def _settle_all(self) -> None:
        """What comes while an exchange is under way goes with the next one."""
        try:
            while self._urgent:
                self._urgent, due, self._due = False, list(self._due), {}
                for first in range(0, len(due), _TOGETHER):
                    await self._exchange(due[first : first + _TOGETHER])
        finally:
            self._settling = None
        if self._due:
            self._timer = asyncio.get_running_loop().call_later(_SETTLE_S, self._hurry)

    async def _exchange(self, buckets: list[_Bucket]) -> None:
        given = [bucket.given for bucket in buckets]
        asked = [bucket.asked for bucket in buckets]
        for bucket in buckets:
            bucket.asked = []
        try:
            replies = await self._server.ask([_command(*one) for one in zip(buckets, given, asked, strict=True)])
        except RedisAway:
            replies = [None] * len(buckets)
        for bucket, number, waiting, reply in zip(buckets, given, asked, replies, strict=True):
            # Forgotten, too, where nobody answered: it is little, and may have been heard.
            bucket.given -= number
            granted = None if reply is None else self._heard(bucket, reply)
            for place, (_, future) in enumerate(waiting):
                if not future.done():  # else its request was given up
                    future.set_result(None if granted is None else place < granted)

    def _heard(self, bucket: _Bucket, reply: list[int | bytes]) -> int:
        """How many of the asked were granted."""
        bucket.left, bucket.heard_at = float(reply[1]), self._clock()
        self._local.level(bucket.credential, bucket.left)
        return int(reply[0])


def _command(bucket: _Bucket, given: int, asked: list[tuple[int, asyncio.Future[bool | None]]]) -> Command:
    numbers = (bucket.credential.per_minute or 0, bucket.size, given, *(number for number, _ in asked))
    return ("EVAL", _TAKE, 1, bucket.key, *numbers)
