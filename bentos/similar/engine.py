"""Decoding and embedding, on threads of their own, and how many requests may be under way."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from bentos.kit.errors import Overloaded
from bentos.kit.telemetry import STAGE_SECONDS, WAITING
from bentos.kit.tracing import CURRENT
from pipelines.core.embedders import pixel_spec
from pipelines.core.embedding import Embedder, Embeddings
from pipelines.core.preprocessing import preprocess

_SMOOTHING = 0.1
"""Weight of the newest image in the running mean of seconds an image."""


class Engine:
    """Belongs to one event loop."""

    def __init__(self, *, threads: int, max_waiting: int, max_wait_s: float) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="engine")
        self._num_threads = threads
        self._max_waiting, self._max_wait_s = max_waiting, max_wait_s
        self._num_inside = self._num_queued = 0
        self._seconds_an_image = 0.0
        WAITING.set_function(lambda: self._num_inside)

    @contextlib.contextmanager
    def place(self) -> Iterator[None]:
        """Of a request, from its image to its answer. Raises Overloaded where too many are under way, or would wait.

        It is held while the store is asked too: a slow store must not pile requests up.
        """
        wait_s = self._num_queued * self._seconds_an_image / self._num_threads
        if self._num_inside >= self._max_waiting or wait_s > self._max_wait_s:
            raise Overloaded(self._num_inside, retry_after_s=max(1, math.ceil(wait_s)))
        self._num_inside += 1
        try:
            yield
        finally:
            self._num_inside -= 1

    async def embed(self, embedder: Embedder, image: bytes) -> Embeddings:
        """The unit vector, float32 [D], of an encoded image. Raises ImageError."""
        arrived = time.perf_counter()
        self._num_queued += 1
        try:
            vector, began, decoded, ended = await asyncio.get_running_loop().run_in_executor(
                self._pool, _embed, embedder, image
            )
        finally:
            self._num_queued -= 1
        known, seconds = self._seconds_an_image, ended - began
        self._seconds_an_image = seconds if not known else known + _SMOOTHING * (seconds - known)
        stages = {"queue": (arrived, began), "decode": (began, decoded), "model": (decoded, ended)}
        span = CURRENT.get()
        for stage, (start, end) in stages.items():
            STAGE_SECONDS[stage].observe(end - start)
            if span is not None:
                span.add(stage, start, end)
        return vector

    def close(self) -> None:
        """Finish what was handed over, then end the threads."""
        self._pool.shutdown()


def _embed(embedder: Embedder, image: bytes) -> tuple[Embeddings, float, float, float]:
    """The vector, and when it was begun, decoded and done."""
    began = time.perf_counter()
    pixels = preprocess(image, pixel_spec(embedder))
    decoded = time.perf_counter()
    vector: Embeddings = embedder.embed(pixels[None])[0]
    return vector, began, decoded, time.perf_counter()
