"""Rates and quotas by credential."""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import Mapping

import pytest

from bentos.kit.access.key_store import ActiveKey, StoreAway
from bentos.kit.access.limits import Quotas, Rates
from bentos.kit.errors import RequestRefused
from pipelines.core.access import Credential

SIXTY = Credential(id="sixty", role="predictor", per_minute=60)
DAILY = Credential(id="daily", role="predictor", per_day=100)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def taken(rates: Rates, credential: Credential = SIXTY) -> int:
    """Images until the first refusal."""
    for number in range(10_000):
        try:
            rates.take(credential, 1)
        except RequestRefused:
            return number
    return 10_000


def test_a_bucket_holds_ten_seconds_and_fills_at_its_rate() -> None:
    clock = Clock()
    rates = Rates(clock=clock)
    assert taken(rates) == 10
    clock.now = 3
    assert taken(rates) == 3
    clock.now = 1000
    assert taken(rates) == 10


def test_a_refusal_says_when_to_come_again() -> None:
    clock = Clock()
    rates = Rates(clock=clock)
    rates.take(SIXTY, 15)  # five more than there are: a debt
    with pytest.raises(RequestRefused) as caught:
        rates.take(SIXTY, 1)
    assert (caught.value.status, caught.value.retry_after_s) == (429, 6)
    clock.now = 6
    rates.take(SIXTY, 1)


def test_each_process_gives_its_share_and_each_credential_has_its_own_bucket() -> None:
    rates = Rates(share=0.5, clock=Clock())
    assert taken(rates) == 5
    assert taken(rates, Credential(id="other", role="predictor", per_minute=60)) == 5
    assert taken(rates, Credential(id="free", role="predictor")) == 10_000


class Counting:
    """What the database does with usage."""

    def __init__(self) -> None:
        self.totals: dict[str, int] = {}
        self.away = False
        self.answering = asyncio.Event()
        self.answering.set()

    async def find(self, digest: str) -> ActiveKey | None:
        return None

    async def add_usage(self, day: datetime.date, used: Mapping[str, int]) -> dict[str, int]:
        await self.answering.wait()
        if self.away:
            raise StoreAway("away")
        for name, number in used.items():
            self.totals[name] = self.totals.get(name, 0) + number
        return {name: self.totals[name] for name in used}

    async def close(self) -> None: ...


def test_processes_share_a_days_quota() -> None:
    async def work() -> None:
        store = Counting()
        first, second = Quotas(store), Quotas(store)
        await first.prepare(DAILY)
        first.take(DAILY, 70)
        await first.close()
        assert store.totals == {"daily": 70}
        await second.prepare(DAILY)
        second.take(DAILY, 30)
        with pytest.raises(RequestRefused) as caught:
            second.take(DAILY, 1)
        assert caught.value.status == 429
        await second.close()
        assert store.totals == {"daily": 100}

    asyncio.run(work())


def test_all_first_requests_wait_for_what_was_used_before() -> None:
    async def work() -> None:
        store = Counting()
        store.totals["daily"] = 100
        store.answering.clear()
        quotas = Quotas(store)

        async def ask() -> None:
            await quotas.prepare(DAILY)
            quotas.take(DAILY, 1)

        waiting = [asyncio.create_task(ask()) for _ in range(3)]
        await asyncio.sleep(0)
        waiting[0].cancel()  # and takes nobody along
        await asyncio.sleep(0)
        store.answering.set()
        found = await asyncio.gather(*waiting[1:], return_exceptions=True)
        assert [isinstance(one, RequestRefused) and one.status for one in found] == [429, 429]

    asyncio.run(work())


def test_a_new_day_is_asked_about_before_its_first_image() -> None:
    """Others may have given it all while this process heard nothing of the credential."""
    now = datetime.datetime(2030, 1, 1, tzinfo=datetime.UTC)

    async def work() -> None:
        nonlocal now
        store = Counting()
        quotas = Quotas(store, lambda: now)
        await quotas.prepare(DAILY)
        quotas.take(DAILY, 1)
        now += datetime.timedelta(days=1)
        store.totals = {"daily": 100}
        await quotas.prepare(DAILY)
        with pytest.raises(RequestRefused):
            quotas.take(DAILY, 1)
        await quotas.close()

    asyncio.run(work())


def test_the_next_day_begins_anew_and_a_refusal_says_when_that_is() -> None:
    now = datetime.datetime(2030, 1, 1, 23, 0, tzinfo=datetime.UTC)

    async def work() -> None:
        nonlocal now
        quotas = Quotas(None, lambda: now)
        quotas.take(DAILY, 100)
        with pytest.raises(RequestRefused) as caught:
            quotas.take(DAILY, 1)
        assert caught.value.retry_after_s == 3600
        now += datetime.timedelta(hours=1)
        quotas.take(DAILY, 100)

    asyncio.run(work())


def test_what_could_not_be_said_is_said_later() -> None:
    async def work() -> None:
        store = Counting()
        quotas = Quotas(store)
        store.away = True
        await quotas.prepare(DAILY)
        quotas.take(DAILY, 40)
        await quotas.close()
        assert store.totals == {}
        with pytest.raises(RequestRefused):
            quotas.take(DAILY, 61)
        store.away = False
        await quotas.close()
        assert store.totals == {"daily": 40}

    asyncio.run(work())
