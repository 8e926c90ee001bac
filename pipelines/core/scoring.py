"""Many images through the serving path, streamed: what evaluation, the gate and `darkroom evaluate` share."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from pipelines.core.errors import ImageError
from pipelines.core.inference import Classifier

BATCH = 64
"""Images that a thread holds at once, in bytes and then in pixels."""

T = TypeVar("T")


def score(
    classifier: Classifier,
    image_ids: Sequence[str],
    read: Callable[[str], bytes],
    threads: int = 1,
) -> NDArray[np.float32]:
    """Logits [N, num classes] of images read one by one. The classifier had best have one thread of its own.

    Raises ImageError that names the image. Batches do not depend on `threads`, so neither do the logits.
    """
    logits = np.empty((len(image_ids), len(classifier.package.class_names)), np.float32)

    def run(start: int) -> None:
        batch = image_ids[start : start + BATCH]
        found, refused = predict_each(classifier, [read(image_id) for image_id in batch])
        for position, error in refused.items():
            raise ImageError(error.reason, f"image {batch[position]}: {error.detail}")
        logits[start : start + len(batch)] = found

    for _ in parallel(run, range(0, len(image_ids), BATCH), threads):
        pass
    return logits


def predict_each(classifier: Classifier, images: Sequence[bytes]) -> tuple[NDArray[np.float32], dict[int, ImageError]]:
    """Logits of the images that are accepted, in order, and why the others (by position) are not."""
    try:
        return classifier.predict_bytes(images).logits, {}
    except ImageError:
        pass
    rows, refused = [np.empty((0, len(classifier.package.class_names)), np.float32)], {}
    for position, data in enumerate(images):
        try:
            rows.append(classifier.predict_bytes([data]).logits)
        except ImageError as error:
            refused[position] = error
    return np.concatenate(rows), refused


def parallel(function: Callable[[int], T], arguments: Iterable[int], threads: int) -> Iterator[T]:
    """Results in order, from threads that are never further ahead than two calls each."""
    waiting = iter(arguments)
    with ThreadPoolExecutor(threads) as pool:
        running: deque[Future[T]] = deque(pool.submit(function, one) for one in islice(waiting, 2 * threads))
        while running:
            yield running.popleft().result()
            running.extend(pool.submit(function, one) for one in islice(waiting, 1))
