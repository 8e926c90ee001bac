"""Rates that several processes keep together in a real Redis; the processes are guards in one event loop here."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from redis_server import RedisProcess, running_redis

from bentos.kit.access.limits import Rates
from bentos.kit.access.shared_rates import SharedRates
from bentos.kit.errors import RequestRefused
from bentos.kit.shared.server import RedisServer
from pipelines.core.access import Credential

SLOW = Credential(id="slow", role="predictor", per_minute=6)
"""A bucket of one image, one every ten seconds."""
TEN = Credential(id="ten", role="predictor", per_minute=600)
"""A bucket of 100 images, ten a second."""


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisProcess]:
    with running_redis(tmp_path / "redis") as server:
        yield server


class Process:
    """One of two."""

    def __init__(self, redis: RedisProcess, *, scope: str = "digits-v1-1", share: float = 0.5) -> None:
        self.server = RedisServer(redis.url_file)
        self.rates = SharedRates(self.server, Rates(share), scope=scope)
        self.given = 0

    async def takes(self, credential: Credential = TEN, num_images: int = 1) -> bool:
        try:
            await self.rates.take(credential, num_images)
        except RequestRefused:
            return False
        self.given += num_images
        return True

    async def takes_all(self, credential: Credential = TEN) -> int:
        """Images until the first refusal."""
        before = self.given
        while await self.takes(credential):
            pass
        return self.given - before


Work = Callable[[Process, Process], Awaitable[None]]


def with_two(redis: RedisProcess, work: Work, *, scopes: tuple[str, str] = ("digits-v1-1", "digits-v1-1")) -> None:
    async def run() -> None:
        first, second = (Process(redis, scope=scope) for scope in scopes)
        for one in (first, second):
            await one.server.open()
        try:
            await work(first, second)
        finally:
            for one in (first, second):
                await one.rates.close()
                await one.server.close()

    asyncio.run(run())


async def until(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        await asyncio.sleep(0.01)


def test_one_process_has_all_of_a_bucket_that_no_other_uses(redis: RedisProcess) -> None:
    async def work(first: Process, second: Process) -> None:
        began = time.monotonic()
        given = await first.takes_all()
        flown = 10 * (time.monotonic() - began)
        assert 100 <= given <= 100 + flown + 3
        assert not await second.takes()

    with_two(redis, work)


def test_two_that_are_asked_at_once_keep_within_the_bound(redis: RedisProcess) -> None:
    """Over three seconds the bucket and what flows into it, and at the end of it no more than the credit of both."""

    async def work(first: Process, second: Process) -> None:
        began = time.monotonic()

        async def ask(process: Process) -> None:
            while time.monotonic() - began < 3:
                await process.takes()
                await asyncio.sleep(0.001)

        await asyncio.gather(*(ask(process) for process in (first, second) for _ in range(4)))
        flown = 10 * (time.monotonic() - began)
        given = first.given + second.given
        assert 100 + flown - 3 <= given <= 100 + flown + 5
        assert min(first.given, second.given) > 0

    with_two(redis, work)


def test_a_refusal_says_when_to_come_again(redis: RedisProcess) -> None:
    async def work(first: Process, second: Process) -> None:
        assert await first.takes(SLOW)
        for process in (first, second):
            for _ in range(2):  # asked, and known
                with pytest.raises(RequestRefused) as caught:
                    await process.rates.take(SLOW, 1)
                assert caught.value.status == 429
                assert caught.value.retry_after_s in (9, 10)

    with_two(redis, work)


def test_many_images_run_into_debt_that_all_pay(redis: RedisProcess) -> None:
    async def work(first: Process, second: Process) -> None:
        await first.rates.take(TEN, 150)
        for process in (first, second):
            with pytest.raises(RequestRefused) as caught:
                await process.rates.take(TEN, 1)
            assert caught.value.retry_after_s in (5, 6)

    with_two(redis, work)


def test_a_few_images_are_given_without_waiting_and_said_soon(redis: RedisProcess) -> None:
    async def work(first: Process, second: Process) -> None:
        five = Credential(id="five", role="predictor", per_minute=30)
        assert await first.takes(five)  # the first that a process sees of somebody is asked for
        redis.hang()
        try:
            assert await asyncio.wait_for(first.takes(five), 0.1)
        finally:
            redis.wake()
        await until(lambda: not any(bucket.given for bucket in first.rates._buckets.values()))
        assert await second.takes_all(five) == 3

    with_two(redis, work)


def test_deployments_have_buckets_of_their_own(redis: RedisProcess) -> None:
    async def work(first: Process, second: Process) -> None:
        assert await first.takes(SLOW)
        assert not await first.takes(SLOW)
        assert await second.takes(SLOW)

    with_two(redis, work, scopes=("digits-v1-1", "digits-v2-2"))


def test_a_changed_rate_counts_at_once(redis: RedisProcess) -> None:
    async def work(first: Process, second: Process) -> None:
        assert await first.takes(SLOW)
        assert not await first.takes(SLOW)
        faster = Credential(id="slow", role="predictor", per_minute=6000)
        began = time.monotonic()
        while not await first.takes(faster):
            assert time.monotonic() - began < 5
            await asyncio.sleep(0.01)

    with_two(redis, work)


def test_alone_each_goes_on_with_its_share_of_what_was_left(
    redis: RedisProcess, caplog: pytest.LogCaptureFixture
) -> None:
    async def work(first: Process, second: Process) -> None:
        while first.given < 60:
            await first.takes()
        assert await second.takes()
        redis.kill()
        # What was left when they last heard was some 40; half of it is each one's. Nobody is refused for the outage.
        given = await first.takes_all() + await second.takes_all()
        assert 34 <= given <= 50
        assert not first.server.available
        redis.start()
        await until(lambda: first.server.available and second.server.available)
        assert await first.takes()

    with caplog.at_level("INFO", logger="darkroom.redis"):
        with_two(redis, work)
    said = [record.message for record in caplog.records]
    assert [sum(text.startswith(start) for text in said) for start in ("Redis is away", "Redis is back")] == [2, 2]
    assert str(redis.port) not in caplog.text


def test_a_redis_that_hangs_is_waited_for_once(redis: RedisProcess) -> None:
    async def work(first: Process, second: Process) -> None:
        redis.hang()
        try:
            began = time.monotonic()
            assert await first.takes(SLOW)
            assert time.monotonic() - began < 2
            assert not first.server.available
        finally:
            redis.wake()
        await until(lambda: first.server.available)

    with_two(redis, work)


def test_a_restart_between_two_questions_is_no_outage(redis: RedisProcess, caplog: pytest.LogCaptureFixture) -> None:
    async def work(first: Process, second: Process) -> None:
        assert await first.takes(SLOW)
        redis.kill()
        redis.start()
        assert await first.takes(TEN)
        assert first.server.available

    with_two(redis, work)
    assert caplog.text == ""


def test_junk_in_a_bucket_is_an_empty_place(redis: RedisProcess) -> None:
    async def work(first: Process, second: Process) -> None:
        (key,) = (bucket.key for bucket in (first.rates._bucket(TEN, 600),))
        await second.server.ask([("SET", key, "junk")])
        assert await first.takes()
        await second.server.ask([("SET", key, "1e300")])  # a debt of a day is the largest that there is
        assert not await second.takes()

    with_two(redis, work)
