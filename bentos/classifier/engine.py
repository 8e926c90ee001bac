"""Decoding and the model, on threads of their own; the event loop hands work over and gets answers back.

A thread takes what waits when it becomes free and computes it as one batch: alone when the process is idle, together
under load, and nobody ever waits for a batch to fill. One wake-up of the event loop serves a whole batch.
"""

from __future__ import annotations

import asyncio
import logging
import math
import queue
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bentos.kit.errors import Overloaded
from bentos.kit.telemetry import BATCH_IMAGES, STAGE_SECONDS, WAITING
from bentos.kit.tracing import CURRENT, Span
from pipelines.core.errors import ImageError
from pipelines.core.inference import Classifier, Outputs
from pipelines.core.pixelset import Pixels
from pipelines.core.preprocessing import preprocess

_BATCH_S = 0.02
"""A batch holds as many images as take about this long: larger ones win little on a CPU and keep others waiting."""
_LINE = 8
"""Images a thread that may always be here, however long a large model takes for them: at 80% of capacity chance alone
makes a line that is longer for 0.9% of those who come (M/D/1), and one of 4 would refuse 6%.
"""
_SMOOTHING = 0.1
"""Weight of the newest batch in the running mean of seconds an image."""
LOOK_AGAIN_S = 0.05
"""Of who waits for room. All of them look equally often, so none is passed over for ever."""

logger = logging.getLogger("darkroom.engine")


@dataclass(slots=True, eq=False)
class _Job:
    """One request's images, computed as one."""

    images: Sequence[bytes]
    """Encoded; empty where there are pixels."""
    pixels: Pixels | None
    num_images: int
    first: int
    """Place of the first image in the client's request."""
    future: asyncio.Future[Outputs]
    arrived: float
    span: Span | None
    """Of whoever asked; None where it is not traced."""
    decode_began: float = 0.0
    decode_ended: float = 0.0
    error: Exception | None = None
    outputs: Outputs | None = None


class Engine:
    """Threads that decode and classify. Belongs to one event loop; `close` ends the threads."""

    def __init__(self, classifier: Classifier, *, threads: int, max_batch: int, max_waiting: int, max_wait_s: float):
        self._classifier = classifier
        self._spec = classifier.package.preprocessing
        self._max_batch = max_batch
        self._max_waiting, self._max_wait_s = max_waiting, max_wait_s
        self._num_threads = threads
        self._num_waiting = 0
        WAITING.set_function(lambda: self._num_waiting)
        self._seconds_an_image = 0.0
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._threads = [
            threading.Thread(target=self._work, name=f"engine-{number}", daemon=True) for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def admit(self) -> None:
        """Raises Overloaded where a request would wait too long, with the seconds until what is here is answered.

        How many images it has itself does not count: else requests of many would never get in between those of one.
        """
        wait_s = self.wait_s()
        too_long = wait_s > self._max_wait_s and self._num_waiting >= _LINE * self._num_threads
        if too_long or self._num_waiting >= self._max_waiting:
            raise Overloaded(self._num_waiting, retry_after_s=max(1, math.ceil(wait_s)))

    async def room(self) -> None:
        """Wait until a request would be admitted."""
        while True:
            try:
                self.admit()
            except Overloaded:
                await asyncio.sleep(LOOK_AGAIN_S)
            else:
                return

    async def run(self, images: Sequence[bytes], first: int = 0) -> Outputs:
        """Answers to encoded images, together. `admit` them before.

        Raises ImageError for the first that is refused, with its place where there are several, counted from `first`.
        """
        return await self._submit(images, None, len(images), first)

    async def run_pixels(self, pixels_NHWC: Pixels) -> Outputs:  # noqa: N803
        """Answers to preprocessed images, uint8 [N, H, W, 3]. `admit` them before."""
        return await self._submit((), pixels_NHWC, len(pixels_NHWC), 0)

    def wait_s(self) -> float:
        """Seconds that an image which comes now would wait, as far as can be told."""
        return self._num_waiting * self._seconds_an_image / self._num_threads

    def close(self) -> None:
        """Finish what was handed over, then end the threads."""
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()

    async def _submit(self, images: Sequence[bytes], pixels: Pixels | None, num_images: int, first: int) -> Outputs:
        self._loop = loop = asyncio.get_running_loop()
        job = _Job(images, pixels, num_images, first, loop.create_future(), time.perf_counter(), CURRENT.get())
        self._num_waiting += num_images
        self._jobs.put(job)
        try:
            return await job.future
        finally:
            self._num_waiting -= num_images

    # --- on the engine's threads ------------------------------------------------------------------------------------

    def _work(self) -> None:
        while jobs := self._take():
            began = time.perf_counter()
            try:
                decoded = self._compute(jobs)
            except Exception as error:  # a thread that died would leave every later request waiting
                logger.exception("a batch failed")
                decoded = jobs[-1].decode_ended
                for job in jobs:
                    job.error = job.error or error
            ended = time.perf_counter()
            assert self._loop is not None
            try:
                self._loop.call_soon_threadsafe(self._deliver, jobs, began, decoded, ended)
            except RuntimeError:  # the loop has ended: nobody is left to answer
                return

    def _take(self) -> list[_Job]:
        """The next job and what waits behind it: this thread's share, at most a batch. Empty at the end."""
        while True:
            job = self._jobs.get()
            if job is None:
                return []
            if not job.future.cancelled():  # else its client has gone
                break
        jobs = [job]
        waiting = self._jobs.qsize() + 1
        limit = min(self._batch_limit(), -(-waiting // self._num_threads))
        num_images = job.num_images
        while num_images < limit:
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                break
            if job is None:  # the end of another thread
                self._jobs.put(None)
                break
            if not job.future.cancelled():
                jobs.append(job)
                num_images += job.num_images
        return jobs

    def _batch_limit(self) -> int:
        if not self._seconds_an_image:
            return 1
        return max(1, min(self._max_batch, round(_BATCH_S / self._seconds_an_image)))

    def _compute(self, jobs: Sequence[_Job]) -> float:
        """Set every job's outputs or error. Returns when decoding ended."""
        parts: list[Pixels] = []
        decoded = time.perf_counter()
        for job in jobs:
            job.decode_began = decoded
            try:
                parts.append(self._decoded(job))
            except Exception as error:
                job.error = error
            job.decode_ended = decoded = time.perf_counter()
        good = [job for job in jobs if job.error is None]
        if not good:
            return decoded
        outputs = self._classifier.predict_batch(parts[0] if len(parts) == 1 else np.concatenate(parts))
        first = 0
        for job in good:
            job.outputs = outputs.part(first, first + job.num_images)
            first += job.num_images
        return decoded

    def _decoded(self, job: _Job) -> Pixels:
        if job.pixels is not None:
            return job.pixels
        if len(job.images) == 1 and not job.first:
            return preprocess(job.images[0], self._spec)[None]
        pixels = np.empty((job.num_images, self._spec.height, self._spec.width, 3), np.uint8)
        for number, image in enumerate(job.images):
            try:
                pixels[number] = preprocess(image, self._spec)
            except ImageError as error:
                raise ImageError(error.reason, f"image {job.first + number}: {error.detail}") from error
        return pixels

    # --- on the event loop ------------------------------------------------------------------------------------------

    def _deliver(self, jobs: Sequence[_Job], began: float, decoded: float, ended: float) -> None:
        num_images = sum(job.num_images for job in jobs)
        each = (ended - began) / num_images
        known = self._seconds_an_image
        self._seconds_an_image = each if not known else known + _SMOOTHING * (each - known)
        BATCH_IMAGES.observe(num_images)
        STAGE_SECONDS["decode"].observe(decoded - began)
        STAGE_SECONDS["model"].observe(ended - decoded)
        for job in jobs:
            STAGE_SECONDS["queue"].observe(began - job.arrived)
            STAGE_SECONDS["batch_wait"].observe(decoded - began - (job.decode_ended - job.decode_began))
            if job.span is not None:
                _trace(job, job.span, began, decoded, ended, num_images)
            if job.future.done():
                continue
            if job.error is not None:
                job.future.set_exception(job.error)
            elif job.outputs is not None:
                job.future.set_result(job.outputs)


def _trace(job: _Job, span: Span, began: float, decoded: float, ended: float, batch_images: int) -> None:
    """A job's stages as parts of its request's span. Between decode and model it waits for the others of its batch."""
    span.add("queue", job.arrived, began)
    refused = isinstance(job.error, ImageError)
    if job.pixels is None:
        span.add("decode", job.decode_began, job.decode_ended, failed=refused, images=job.num_images)
    if not refused:
        span.add("model", decoded, ended, failed=job.error is not None, batch_images=batch_images)
