"""Where pixels come from: the device's memory, decoded files mapped from disk, or encoded files."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipelines.core.errors import ImageError, UserError
from pipelines.core.pixelset import DecodedImages, EncodedImages, Rows
from pipelines.core.preprocessing import PreprocessingSpec, preprocess
from pipelines.core.recipe import Augmentation
from pipelines.training.augmentation.draws import Draws
from pipelines.training.augmentation.geometry import erase, transform
from pipelines.training.loading.decoding import decode_crop
from pipelines.training.loading.order import part

log = logging.getLogger(__name__)

_CHUNK = 8
"""Images that a thread takes at once: few enough to keep all of them busy, many enough to be worth a call."""


class Source(Protocol):
    def fetch(self, rows: Rows, draws: Draws, height: int, width: int, spare: Rows) -> tuple[Tensor, Rows]:
        """Augmented pixels uint8 [N, height, width, 3] on the device, and the rows that they are of: those asked for,
        but for images that do not decode; where none of them does, some of the `spare` ones, a multiple of N. Safe to
        call from several threads.
        """
        ...


class Resident:
    """All pixels on the device; on a CPU they are where they are."""

    def __init__(self, images: DecodedImages, augmentation: Augmentation, device: torch.device) -> None:
        self._images = images
        self._augmentation = augmentation
        self._device = device
        self._pixels = _upload(images, device) if device.type == "cuda" else None

    def fetch(
        self,
        rows: Rows,
        draws: Draws,
        height: int,
        width: int,
        spare: Rows,  # noqa: ARG002 (decoded ones are whole)
    ) -> tuple[Tensor, Rows]:
        if self._pixels is None:
            pixels = torch.from_numpy(self._images.rows(rows))
        else:
            chosen = torch.from_numpy(rows).pin_memory().to(self._device, non_blocking=True)
            pixels = self._pixels.index_select(0, chosen)
        return transform(pixels, draws, self._augmentation, height, width), rows


class Mapped:
    """Decoded pixels gathered from files by threads; on a GPU they are augmented there."""

    def __init__(
        self, images: DecodedImages, augmentation: Augmentation, device: torch.device, pool: ThreadPoolExecutor
    ) -> None:
        self._images = images
        self._augmentation = augmentation
        self._device = device
        self._pool = pool

    def fetch(
        self,
        rows: Rows,
        draws: Draws,
        height: int,
        width: int,
        spare: Rows,  # noqa: ARG002 (decoded ones are whole)
    ) -> tuple[Tensor, Rows]:
        on_gpu = self._device.type == "cuda"
        sides = (self._images.height, self._images.width) if on_gpu else (height, width)
        pixels = torch.empty((len(rows), *sides, 3), dtype=torch.uint8, pin_memory=on_gpu)

        def gather(chunk: slice) -> None:
            if on_gpu:
                self._images.rows(rows[chunk], out=pixels[chunk].numpy())
                return
            found = torch.from_numpy(self._images.rows(rows[chunk]))
            pixels[chunk] = transform(found, draws.part(chunk), self._augmentation, height, width)

        for _ in self._pool.map(gather, _chunks(len(rows))):
            pass
        if on_gpu:
            pixels = pixels.to(self._device, non_blocking=True)
            pixels = transform(pixels, draws, self._augmentation, height, width)
        return pixels, rows


class Stream:
    """Encoded files, decoded by threads as they are needed."""

    def __init__(
        self,
        images: EncodedImages,
        augmentation: Augmentation,
        spec: PreprocessingSpec,
        device: torch.device,
        pool: ThreadPoolExecutor,
        failed: Callable[[int, str], None],
    ) -> None:
        self._images = images
        self._augmentation = augmentation
        self._spec = spec
        self._device = device
        self._pool = pool
        self._failed = failed

    def fetch(self, rows: Rows, draws: Draws, height: int, width: int, spare: Rows) -> tuple[Tensor, Rows]:
        cut = self._augmentation.crop == "resized"
        sides = (height, width) if cut else (self._spec.height, self._spec.width)
        pixels = torch.empty((len(rows), *sides, 3), dtype=torch.uint8, pin_memory=self._device.type == "cuda")
        num_images, tried = len(rows), 0
        good = self._decode(rows, draws, pixels, cut)
        while not good.any() and tried < len(spare):
            rows, tried = spare[tried : tried + num_images], tried + num_images
            good = self._decode(rows, draws, pixels, cut)
        if not good.all():
            rows = _replaced(pixels, rows, good)
        pixels = pixels.to(self._device, non_blocking=True)
        if cut:
            return erase(pixels, draws.erased), rows
        return transform(pixels, draws, self._augmentation, height, width), rows

    def _decode(self, rows: Rows, draws: Draws, pixels: Tensor, cut: bool) -> NDArray[np.bool_]:
        """Fill `pixels`, cut to their sides or as for evaluation; tells which places have been filled."""
        height, width = pixels.shape[1:3]
        good = np.ones(len(rows), bool)
        boxes, mirrored, sizes = draws.boxes.tolist(), draws.mirrored.tolist(), self._images.sizes[rows].tolist()

        def decode(chunk: slice) -> None:
            for place in range(*chunk.indices(len(rows))):
                row = int(rows[place])
                try:
                    pixels[place] = torch.from_numpy(
                        decode_crop(self._images.data(row), sizes[place], boxes[place], mirrored[place], height, width)
                        if cut
                        else preprocess(self._images.data(row), self._spec)
                    )
                except ImageError as error:
                    good[place] = False
                    self._failed(row, error.detail)

        for _ in self._pool.map(decode, _chunks(len(rows))):
            pass
        return good


def _replaced(pixels: Tensor, rows: Rows, good: NDArray[np.bool_]) -> Rows:
    """Fill the places of images that do not decode with the next one that did, so that a batch keeps its shape."""
    usable = np.flatnonzero(good)
    if not len(usable):
        raise UserError(
            f"none of {len(rows)} images of a batch decodes, nor of those that come after: their files are damaged; "
            "prepare them again"
        )
    places = np.arange(len(rows))
    instead = usable[np.searchsorted(usable, places) % len(usable)]
    pixels[:] = pixels[torch.from_numpy(instead)]
    return rows[instead]


def _upload(images: DecodedImages, device: torch.device) -> Tensor:
    """All pixels as one tensor on the device, uint8 [N, H, W, 3]."""
    pixels = torch.empty((len(images), images.height, images.width, 3), dtype=torch.uint8, device=device)
    start = 0
    for batch in images.batches(4096):
        pixels[start : start + len(batch)] = torch.from_numpy(batch)
        start += len(batch)
    return pixels


def _chunks(length: int) -> Iterator[slice]:
    num_chunks = -(-length // _CHUNK)
    return (part(length, num_chunks, index) for index in range(num_chunks))
