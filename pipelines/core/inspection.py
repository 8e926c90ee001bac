"""One look at image files: digest, decode check, perceptual hash and statistics; the bytes go to the blob store.

This is what the ingest step's worker processes run. Each file is read once.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from pipelines.core import perceptual
from pipelines.core.datasets import blob_key
from pipelines.core.errors import ImageError
from pipelines.core.preprocessing import decode
from pipelines.core.sources.files import Reader
from pipelines.core.storage import Storage, open_storage

A = TypeVar("A")
B = TypeVar("B")

_BATCH = 16
"""Files held in memory at once by a worker."""
_STATISTICS_SIDE = 256
"""Sharpness is measured on a grey image reduced until its longer side is at most this, px."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Address:
    """Where one file's bytes are, as its source listed them."""

    uri: str
    archive: str | None = None
    offset: int | None = None
    size_bytes: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Inspected:
    """What a look at one image found. Field names are the columns of the manifest and the statistics."""

    image_id: str
    width: int
    height: int
    format: str
    mode: str
    size_bytes: int
    phash: int
    brightness: float
    contrast: float
    sharpness: float
    entropy: float
    aspect: float
    size_px: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Refused:
    """Why a file is no image for us."""

    reason: str
    detail: str
    image_id: str | None = None
    size_bytes: int | None = None


Answer = Inspected | Refused


def start(
    store_uri: str, store_endpoint_url: str | None, source_endpoint_url: str | None, cache: Path
) -> Callable[[Sequence[Address]], list[Answer]]:
    """What a worker process does first: it opens its connections."""
    storage = open_storage(store_uri, endpoint_url=store_endpoint_url)
    return Inspector(storage, Reader(cache, source_endpoint_url)).inspect


class Inspector:
    """Looks at files and stores the good ones. One a process."""

    def __init__(self, storage: Storage, reader: Reader) -> None:
        self._storage = storage
        self._reader = reader
        self._threads: ThreadPoolExecutor | None = None

    def inspect(self, files: Sequence[Address]) -> list[Answer]:
        """One answer a file, in order. No file raises; PlatformError where the machine fails."""
        # Requests to S3 wait for the network, files on disk do not.
        if self._threads is None and any(uri.startswith("s3://") for uri in (self._storage.uri, files[0].uri)):
            self._threads = ThreadPoolExecutor(_BATCH)
        return [answer for at in range(0, len(files), _BATCH) for answer in self._batch(files[at : at + _BATCH])]

    def _batch(self, files: Sequence[Address]) -> Iterator[Answer]:
        contents = self._map(self._read, files)
        looks = [content if isinstance(content, Refused) else _look(content) for content in contents]
        good = [
            (content, look)
            for content, look in zip(contents, looks, strict=True)
            if isinstance(look, _Look) and isinstance(content, bytes)
        ]
        self._map(lambda pair: self._storage.write_new(blob_key(pair[1].image_id), pair[0]), good)
        described = _describe([look for _, look in good])
        for look in looks:
            yield look if isinstance(look, Refused) else next(described)

    def _read(self, file: Address) -> bytes | Refused:
        try:
            return self._reader.read(file.uri, file.archive, file.offset, file.size_bytes)
        except ImageError as error:
            return Refused(reason=error.reason, detail=error.detail, size_bytes=file.size_bytes)

    def _map(self, function: Callable[[A], B], items: Sequence[A]) -> list[B]:
        return list(self._threads.map(function, items) if self._threads else map(function, items))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Look:
    """One decoded image, before the arithmetic that is shared by a batch."""

    image_id: str
    width: int
    height: int
    format: str
    mode: str
    size_bytes: int
    histogram: list[int]
    thumbnail: npt.NDArray[np.uint8]
    sharpness: float


def _look(data: bytes) -> _Look | Refused:
    image_id = hashlib.sha256(data).hexdigest()
    try:
        decoded = decode(data)
    except ImageError as error:
        return Refused(reason=error.reason, detail=error.detail, image_id=image_id, size_bytes=len(data))
    grey = decoded.image.convert("L")
    small = grey.reduce(max(1, math.ceil(max(grey.size) / _STATISTICS_SIDE)))
    thumbnail = small.resize((perceptual.SIDE, perceptual.SIDE), Image.Resampling.BILINEAR)
    return _Look(
        image_id=image_id,
        width=decoded.width,
        height=decoded.height,
        format=decoded.format,
        mode=decoded.mode,
        size_bytes=len(data),
        histogram=grey.histogram(),
        thumbnail=np.asarray(thumbnail),
        sharpness=_sharpness(np.asarray(small)),
    )


def _sharpness(grey: npt.NDArray[np.uint8]) -> float:
    """Variance of the 4-neighbour Laplacian (Pech-Pacheco et al., 2000) of luma in [0, 1]; 0 below 3 x 3 px."""
    if min(grey.shape) < 3:
        return 0.0
    luma = grey.astype(np.int16)
    laplacian = luma[:-2, 1:-1] + luma[2:, 1:-1] + luma[1:-1, :-2] + luma[1:-1, 2:] - 4 * luma[1:-1, 1:-1]
    return float(laplacian.var(dtype=np.float64)) / 255**2


_LEVELS = np.arange(256)


def _describe(looks: Sequence[_Look]) -> Iterator[Inspected]:
    if not looks:
        return
    # Sums of integers, so that no machine and no batch gives another last bit.
    counts = np.array([look.histogram for look in looks], dtype=np.int64)
    pixels = counts.sum(axis=1)
    brightness = counts @ _LEVELS / (255 * pixels)
    contrast = np.sqrt(np.maximum(counts @ _LEVELS**2 / (255**2 * pixels) - brightness**2, 0))
    share = counts / pixels[:, None]
    entropy = -(share * np.log2(np.where(share > 0, share, 1))).sum(axis=1)
    hashes = perceptual.phash(np.stack([look.thumbnail for look in looks]))
    for at, look in enumerate(looks):
        yield Inspected(
            image_id=look.image_id,
            width=look.width,
            height=look.height,
            format=look.format,
            mode=look.mode,
            size_bytes=look.size_bytes,
            phash=int(hashes[at]),
            brightness=float(brightness[at]),
            contrast=float(contrast[at]),
            sharpness=look.sharpness,
            entropy=float(entropy[at]),
            aspect=look.width / look.height,
            size_px=look.width * look.height,
        )
