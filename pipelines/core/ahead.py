"""Work done ahead of whoever needs its results."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from itertools import islice
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def ahead(pool: ThreadPoolExecutor, function: Callable[[T], R], items: Iterable[T], depth: int) -> Generator[R]:
    """Results in order, at most `depth` of them under way or waiting. Raises what the function raises.

    Whoever stops early closes the generator: nothing runs after that.
    """
    waiting = iter(items)
    running: deque[Future[R]] = deque(pool.submit(function, one) for one in islice(waiting, depth))
    try:
        while running:
            result = running.popleft().result()
            running.extend(pool.submit(function, one) for one in islice(waiting, 1))
            yield result
    finally:
        for one in running:
            one.cancel()
        wait(running)
