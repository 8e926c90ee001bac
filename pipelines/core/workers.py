"""Worker processes that die with their parent and survive each other."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Generic, TypeVar

from pipelines.core.errors import PlatformError
from pipelines.core.processes import die_with_parent

T = TypeVar("T")
R = TypeVar("R")

MAX_KILLERS = 5
"""Items that may end their worker before the machine, and not the items, is blamed."""


class Workers(Generic[T, R]):
    """Applies a function to chunks of items in processes of their own.

    `start` is called once in each worker and returns the function; both must be importable. An item that ends its
    worker (a decoder's crash) is found by trying its neighbours alone, and answered by `crashed`.
    """

    def __init__(
        self,
        start: Callable[..., Callable[[Sequence[T]], list[R]]],
        arguments: tuple[Any, ...],
        crashed: Callable[[T], R],
        num_workers: int,
    ) -> None:
        self._start = start
        self._arguments = arguments
        self._crashed = crashed
        self._num_workers = num_workers
        self._num_killers = 0

    def map(self, chunks: Iterable[Sequence[T]]) -> Iterator[list[R]]:
        """Answers of each chunk, in order, with a bounded number under way. Raises what the function raises."""
        waiting = iter(chunks)
        under_way: deque[tuple[Sequence[T], Future[list[R]]]] = deque()
        pool = self._pool(self._num_workers)
        try:
            while True:
                while len(under_way) < 2 * self._num_workers and (chunk := next(waiting, None)) is not None:
                    under_way.append((chunk, self._submit(pool, chunk)))
                if not under_way:
                    return
                chunk, future = under_way[0]
                try:
                    answers = future.result()
                except BrokenProcessPool:
                    pool.shutdown(cancel_futures=True)
                    answers = self._alone(chunk)
                    pool = self._pool(self._num_workers)
                    rest = [later for later, _ in under_way][1:]
                    under_way = deque([(chunk, future), *((later, self._submit(pool, later)) for later in rest)])
                under_way.popleft()
                yield answers
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _submit(self, pool: ProcessPoolExecutor, chunk: Sequence[T]) -> Future[list[R]]:
        try:
            return pool.submit(_work, chunk)
        except BrokenProcessPool as error:
            broken: Future[list[R]] = Future()
            broken.set_exception(error)
            return broken

    def _alone(self, chunk: Sequence[T]) -> list[R]:
        """The answers of a chunk that was under way when a worker ended: halved until the killer is alone."""
        try:
            with self._pool(1) as pool:
                return pool.submit(_work, chunk).result()
        except BrokenProcessPool:
            if len(chunk) > 1:
                middle = len(chunk) // 2
                return self._alone(chunk[:middle]) + self._alone(chunk[middle:])
        self._num_killers += 1
        if self._num_killers > MAX_KILLERS:
            raise PlatformError("worker processes keep being killed; is there too little memory?")
        return [self._crashed(chunk[0])]

    def _pool(self, num_workers: int) -> ProcessPoolExecutor:
        # A forked child would inherit locks that other threads hold.
        context = multiprocessing.get_context("spawn")
        arguments = (os.getpid(), self._start, self._arguments)
        return ProcessPoolExecutor(num_workers, mp_context=context, initializer=_begin, initargs=arguments)


_function: Callable[[Sequence[Any]], list[Any]] | None = None


def _begin(parent: int, start: Callable[..., Callable[[Sequence[Any]], list[Any]]], arguments: tuple[Any, ...]) -> None:
    global _function
    die_with_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    _function = start(*arguments)


def _work(chunk: Sequence[Any]) -> list[Any]:
    assert _function is not None
    return _function(chunk)
