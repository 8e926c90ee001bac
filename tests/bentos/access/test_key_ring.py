"""Keys are asked about again and again, and believed for a while where nobody answers."""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import Mapping

import pytest

from bentos.kit.access import key_ring
from bentos.kit.access.key_ring import GRACE_S, MAX_QUESTIONS, REFRESH_S, STALE_S, KeyRing
from bentos.kit.access.key_store import ABOUT_STRANGERS, ActiveKey, StoreAway
from bentos.kit.errors import RequestRefused
from pipelines.core.access import Credential

ANNA = Credential(id="anna", role="predictor")


class Failing:
    """A store that can be away, slow, or asked how often it was asked. Time and failure are all that is faked."""

    def __init__(self) -> None:
        self.keys: dict[str, ActiveKey] = {"a": ActiveKey(credential=ANNA)}
        self.away = False
        self.asked = 0
        self.answering = asyncio.Event()
        self.answering.set()
        self.slow_for = ""
        """Only keys that begin with this wait, and find it away."""

    async def find(self, digest: str) -> ActiveKey | None:
        self.asked += 1
        if digest.startswith(self.slow_for):
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
        store.keys["nobody"] = ActiveKey(credential=ANNA)
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


def flood(ring: KeyRing, number: int = 500) -> list[asyncio.Task[Credential | None]]:
    return [asyncio.create_task(ring.find(f"junk {number}")) for number in range(number)]


def test_a_flood_of_unknown_keys_is_no_flood_of_queries() -> None:
    async def work() -> None:
        store = Failing()
        ring = KeyRing(store)
        store.answering.clear()
        waiting = flood(ring)
        await settle()
        assert store.asked == ABOUT_STRANGERS  # the others wait here, where that does not count as the store's time
        store.answering.set()
        found = await asyncio.gather(*waiting, return_exceptions=True)
        assert store.asked == MAX_QUESTIONS
        assert sum(isinstance(one, RequestRefused) and one.status == 503 for one in found) == 500 - MAX_QUESTIONS

    asyncio.run(work())


def test_a_flood_of_unknown_keys_shuts_out_no_key_that_was_vouched_for() -> None:
    async def work() -> None:
        store, clock = Failing(), Clock()
        ring = KeyRing(store, clock)
        await ring.find("a")
        store.slow_for = "junk"
        store.answering.clear()
        waiting = flood(ring)
        await settle()
        clock.now += REFRESH_S + 0.01
        asked = store.asked
        assert await ring.find("a") == ANNA
        await settle()
        assert store.asked == asked + 1, "asked about anew in the background"
        clock.now += STALE_S + 0.01
        assert await ring.find("a") == ANNA
        del store.keys["a"]
        clock.now += STALE_S + 0.01
        assert await ring.find("a") is None, "revoked while the flood goes on"
        store.answering.set()
        await asyncio.gather(*waiting, return_exceptions=True)

    asyncio.run(work())


def test_that_the_store_is_late_for_unknown_keys_says_nothing_of_those_it_vouched_for() -> None:
    async def work() -> None:
        store, clock = Failing(), Clock()
        ring = KeyRing(store, clock)
        await ring.find("a")
        store.slow_for, store.away = "junk", True
        await asyncio.gather(*flood(ring, 5), return_exceptions=True)
        del store.keys["a"]
        clock.now += STALE_S + 0.01
        assert await ring.find("a") is None

    asyncio.run(work())


def test_unknown_keys_take_no_place_in_memory_from_those_that_were_vouched_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_ring, "MAX_KNOWN", 20)

    async def work() -> None:
        store, clock = Failing(), Clock()
        ring = KeyRing(store, clock)
        await ring.find("a")
        for number in range(50):
            assert await ring.find(f"junk {number}") is None
        store.away = True
        clock.now += GRACE_S - 1
        assert await ring.find("a") == ANNA

    asyncio.run(work())


def test_a_key_ends_when_it_expires_though_the_store_is_away() -> None:
    ends = datetime.datetime(2030, 1, 1, tzinfo=datetime.UTC)
    now = ends - datetime.timedelta(seconds=10)

    async def work() -> None:
        nonlocal now
        store, clock = Failing(), Clock()
        store.keys["a"] = ActiveKey(credential=ANNA, expires_at=ends)
        ring = KeyRing(store, clock, lambda: now)
        assert await ring.find("a") == ANNA
        store.away = True
        clock.now += 9
        now += datetime.timedelta(seconds=9)
        assert await ring.find("a") == ANNA
        clock.now += 1
        now += datetime.timedelta(seconds=1)
        assert await ring.find("a") is None
        assert await ring.find("a") is None, "nor is it one that nobody can tell of"

    asyncio.run(work())


def test_a_key_ends_to_the_moment_though_it_was_asked_about_just_now() -> None:
    ends = datetime.datetime(2030, 1, 1, tzinfo=datetime.UTC)

    async def work() -> None:
        now = ends - datetime.timedelta(microseconds=1)
        store = Failing()
        store.keys["a"] = ActiveKey(credential=ANNA, expires_at=ends)
        ring = KeyRing(store, Clock(), lambda: now)
        assert await ring.find("a") == ANNA
        now = ends
        assert await ring.find("a") is None

    asyncio.run(work())
