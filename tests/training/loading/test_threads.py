"""Threads that load: one core each, and none left behind."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from pipelines.core.ahead import ahead
from pipelines.training.loading.threads import single_threaded_pool


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_torch_computes_on_one_core_there_and_on_its_own_here() -> None:
    with single_threaded_pool(3, "test") as pool:
        ready = threading.Barrier(3)

        def look(_: int) -> int:
            torch.rand(100_000).sin()  # the first operation of a thread is where torch would set its number
            ready.wait(timeout=30)
            return torch.get_num_threads()

        assert list(pool.map(look, range(3))) == [1, 1, 1]
        assert torch.get_num_threads() == 2
        with ThreadPoolExecutor(1) as other:
            assert other.submit(torch.get_num_threads).result() == 2


def test_results_come_in_order_and_never_too_far_ahead() -> None:
    started: list[int] = []
    with ThreadPoolExecutor(4) as pool:
        results = ahead(pool, lambda item: (started.append(item), item * 2)[1], range(100), depth=3)
        for expected in range(100):
            assert next(results) == expected * 2
            assert len(started) <= expected + 4
        assert next(results, None) is None


def test_an_error_arrives_in_its_place_and_ends_the_work() -> None:
    started: list[int] = []

    def fail_at_three(item: int) -> int:
        started.append(item)
        if item == 3:
            raise ValueError("three")
        return item

    with ThreadPoolExecutor(2) as pool:
        results = ahead(pool, fail_at_three, range(100), depth=2)
        assert [next(results) for _ in range(3)] == [0, 1, 2]
        with pytest.raises(ValueError, match="three"):
            next(results)
    assert len(started) <= 6


def test_nothing_runs_after_the_iterator_is_closed() -> None:
    running = threading.Semaphore(0)
    done: list[int] = []

    def work(item: int) -> int:
        running.release()
        done.append(item)
        return item

    with ThreadPoolExecutor(1) as pool:
        results = ahead(pool, work, range(100), depth=3)
        next(results)
        results.close()
        count = len(done)
        pool.submit(int).result()
        assert len(done) == count <= 4
