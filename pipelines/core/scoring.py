"""Many images through the serving path, streamed: what evaluation, the gate and `darkroom evaluate` share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from pipelines.core.ahead import ahead
from pipelines.core.errors import ImageError
from pipelines.core.inference import Classifier

BATCH = 64
"""Images that a thread holds at once, in bytes and then in pixels."""

T = TypeVar("T")
R = TypeVar("R")
Refused = dict[int, ImageError]
"""Why images are refused, by their position."""


def score(
    classifier: Classifier, image_ids: Sequence[str], read: Callable[[str], bytes], threads: int = 1
) -> NDArray[np.float32]:
    """Logits [N, num classes] of stored images. Raises ImageError that names the first one refused."""
    logits, refused = score_each(classifier, image_ids, read, threads)
    for position, error in sorted(refused.items()):
        raise ImageError(error.reason, f"image {image_ids[position]}: {error.detail}")
    return logits


def score_each(
    classifier: Classifier,
    items: Sequence[T],
    read: Callable[[T], bytes],
    threads: int = 1,
    progress: Callable[[int], None] | None = None,
) -> tuple[NDArray[np.float32], Refused]:
    """Logits [N, num classes] of images that `read` fetches; refused ones have rows of zeros.

    `read` may raise ImageError. Memory holds the logits and a few batches of images. Batches do not depend on
    `threads`, so neither do the logits, as long as the classifier has one thread of its own.
    """
    logits = np.zeros((len(items), len(classifier.package.class_names)), np.float32)

    def run(start: int) -> tuple[int, Refused]:
        found, refused = _predict(classifier, items[start : start + BATCH], read)
        logits[start : start + len(found)] = found
        return len(found), {start + position: error for position, error in refused.items()}

    refused: Refused = {}
    for num_images, more in parallel(run, range(0, len(items), BATCH), threads):
        refused |= more
        if progress is not None:
            progress(num_images)
    return logits, refused


def _predict(
    classifier: Classifier, items: Sequence[T], read: Callable[[T], bytes]
) -> tuple[NDArray[np.float32], Refused]:
    images: dict[int, bytes] = {}
    refused: Refused = {}
    for position, item in enumerate(items):
        try:
            images[position] = read(item)
        except ImageError as error:
            refused[position] = error
    logits = np.zeros((len(items), len(classifier.package.class_names)), np.float32)
    try:
        logits[list(images)] = classifier.predict_bytes(list(images.values())).logits
    except ImageError:
        # One of them is bad: each on its own.
        for position, data in images.items():
            try:
                logits[position] = classifier.predict_bytes([data]).logits[0]
            except ImageError as error:
                refused[position] = error
    return logits, refused


def parallel(function: Callable[[int], R], arguments: Iterable[int], threads: int) -> Iterator[R]:
    """Results in order, from threads that are never further ahead than two calls each."""
    with ThreadPoolExecutor(threads) as pool:
        yield from ahead(pool, function, arguments, 2 * threads)
