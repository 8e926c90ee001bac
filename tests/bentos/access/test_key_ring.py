"""Keys are asked about again and again, and believed for a while where nobody answers."""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import Mapping

import pytest

from bentos.kit.access.key_ring import GRACE_S, REFRESH_S, STALE_S, KeyRing
from bentos.kit.access.key_store import StoreAway
from bentos.kit.errors import RequestRefused
from pipelines.core.access import Credential

ANNA = Credential(id="anna", role="predictor")


class Failing:
    """A store that can be away, slow, or asked how often it was asked. Time and failure are all that is faked."""

    def __init__(self) -> None:
        self.keys: dict[str, Credential] = {"a": ANNA}
        self.away = False
        self.asked = 0
        self.answering = asyncio.Event()
        self.answering.set()

    async def find(self, digest: str) -> Credential | None:
        self.asked += 1
        await self.answering.wait()
        if self.away:
            raise StoreAway("away")
        return self.keys.get(digest)

    async def add_usage(self, day: datetime.date, used: Mapping[str, int]) -> dict[str, int]:
        raise StoreAway("away")

    async def close(self) -> None: ...


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_a_key_is_looked_up_once_and_then_in_the_background() -> None:
    async def work() -> None:
        store, clock = Failing(), Clock()
        ring = KeyRing(store, clock)
        assert [await ring.find("a") for _ in range(10)] == [ANNA] * 10
        assert store.asked == 1
        clock.now += REFRESH_S + 0.01
        store.answering.clear()
        assert await ring.find("a") == ANNA  # nobody waits for the refresh
        await settle()
        assert store.asked == 2
        store.answering.set()

    asyncio.run(work())


def test_a_revocation_acts_within_two_seconds() -> None:
    async def work() -> None:
        store, clock = Failing(), Clock()
        ring = KeyRing(store, clock)
        await ring.find("a")
        del store.keys["a"]
        clock.now += STALE_S + 0.01
        assert await ring.find("a") is None
        assert STALE_S < 2

    asyncio.run(work())


def test_unknown_keys_are_remembered_too() -> None:
    async def work() -> None:
        store, clock = Failing(), Clock()
        ring = KeyRing(store, clock)
        assert [await ring.find("nobody") for _ in range(5)] == [None] * 5
        assert store.asked == 1
        store.keys["nobody"] = ANNA
        clock.now += STALE_S + 0.01
        assert await ring.find("nobody") == ANNA

    asyncio.run(work())


def test_while_the_store_is_away_known_keys_work_for_five_minutes_and_others_get_503() -> None:
    async def work() -> None:
        store, clock = Failing(), Clock()
        ring = KeyRing(store, clock)
        await ring.find("a")
        store.away = True
        clock.now += GRACE_S - 1
        assert await ring.find("a") == ANNA
        with pytest.raises(RequestRefused) as caught:
            await ring.find("b")
        assert (caught.value.status, caught.value.reason) == (503, "keys_unavailable")
        asked = store.asked
        assert await ring.find("a") == ANNA
        assert store.asked == asked  # not at every request
        clock.now += 2
        with pytest.raises(RequestRefused):
            await ring.find("a")
        store.away = False
        clock.now += 2
        assert await ring.find("a") == ANNA

    asyncio.run(work())


def test_many_requests_with_one_key_ask_once_and_a_cancelled_one_takes_nobody_along() -> None:
    async def work() -> None:
        store = Failing()
        ring = KeyRing(store)
        store.answering.clear()
        waiting = [asyncio.create_task(ring.find("a")) for _ in range(20)]
        await settle()
        waiting[0].cancel()
        store.answering.set()
        found = await asyncio.gather(*waiting, return_exceptions=True)
        assert found[1:] == [ANNA] * 19
        assert store.asked == 1

    asyncio.run(work())


def test_a_flood_of_unknown_keys_is_no_flood_of_queries() -> None:
    async def work() -> None:
        store = Failing()
        ring = KeyRing(store)
        store.answering.clear()
        waiting = [asyncio.create_task(ring.find(f"junk {number}")) for number in range(500)]
        await settle()
        store.answering.set()
        found = await asyncio.gather(*waiting, return_exceptions=True)
        assert store.asked == 32
        assert sum(isinstance(one, RequestRefused) and one.status == 503 for one in found) == 468

    asyncio.run(work())
