"""From a split to batches on the device: who comes when, what happens to it, and where its pixels are fetched."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipelines.core.ahead import ahead
from pipelines.core.cores import num_cores
from pipelines.core.embedded import EmbeddedSplit
from pipelines.core.errors import UserError
from pipelines.core.pixelset import EncodedImages, Rows, Split
from pipelines.core.preprocessing import spec_of
from pipelines.core.recipe import Recipe
from pipelines.training.augmentation.draws import Draws, draw
from pipelines.training.augmentation.geometry import size_at
from pipelines.training.augmentation.mixing import mix, mixes
from pipelines.training.batch import Batch
from pipelines.training.loading import order
from pipelines.training.loading.sources import Mapped, Resident, Source, Stream
from pipelines.training.loading.strategies import choose
from pipelines.training.loading.threads import single_threaded_pool
from pipelines.training.randomness import generator

log = logging.getLogger(__name__)

DEPTH = 2
"""Batches under way while one is computed on."""
_MAX_WORKERS = 16
_SPARE_PARTS = 8


@dataclass(frozen=True, kw_only=True)
class Plan:
    """This process's part of one step, before any pixel."""

    epoch: int
    step: int
    rows: Rows
    draws: Draws
    height: int
    width: int
    num_global: int
    spare: Rows
    """Those that come next in the epoch, should none of `rows` decode."""


class Loader:
    """Batches of a training split: every image once an epoch, the same ones after every restart.

    Which images a batch holds, and how each is cut, shifted, mirrored and erased, is a function of recipe, split, epoch
    and step, and so is what mixup and cutmix mix it with; processes and strategy decide where and how it is fetched.
    Two exceptions: streaming has an order of its own, in blocks, and what takes the place of an image that does not
    decode depends on the number of processes. Threads live from construction to `close`.
    """

    def __init__(
        self,
        split: Split,
        recipe: Recipe,
        num_classes: int,
        device: torch.device,
        *,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """Raises UserError where the recipe asks for a strategy that the split or the batches cannot satisfy."""
        self.failures: list[str] = []
        self.steps_per_epoch = order.num_batches(len(split), recipe.training.batch_size)
        self.strategy = choose(split.images, recipe.loading.strategy, device)
        least, unit = (2, "pairs of images to mix") if mixes(recipe.augmentation) else (1, "images")
        if len(split) // self.steps_per_epoch < least * world_size:
            raise UserError(
                f"training.batch_size = {recipe.training.batch_size}: leaves steps with fewer {unit} than there are "
                f"processes ({world_size})"
            )
        self._split = split
        self._recipe = recipe
        self._device = device
        self._rank, self._world_size = rank, world_size
        self._weights = torch.from_numpy(sample_weights(split, num_classes, recipe.training.class_balance))
        self._labels = torch.from_numpy(split.labels)
        self._failed_rows: set[int] = set()
        self._pools: list[ThreadPoolExecutor] = []
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._source = self._open()

    def batches(self, epoch: int, *, first: int = 0) -> Iterator[Batch]:
        """The epoch's batches from step `first` on. What does not decode is replaced and told in `failures`.

        Raises UserError where no image of a batch decodes, nor of those that follow.
        """
        rows = self._order(epoch)
        steps = range(first, self.steps_per_epoch)
        if self.strategy == "resident":
            # In the caller's thread: there is nothing to wait for, and a second one would compete for the cores.
            yield from (self._fetch(self._plan(rows, epoch, step)) for step in steps)
            return
        with closing(
            ahead(self._pools[1], lambda step: self._fetch_aside(self._plan(rows, epoch, step)), steps, DEPTH)
        ) as arriving:
            for batch, ready in arriving:
                if ready is not None:
                    _hand_over(batch, ready)
                yield batch

    def close(self) -> None:
        """End the threads."""
        for pool in self._pools:
            pool.shutdown(cancel_futures=True)

    def _open(self) -> Source:
        images, recipe, device = self._split.images, self._recipe, self._device
        if self.strategy == "resident":
            return Resident(self._split.pixels, recipe.augmentation, device)
        workers = recipe.loading.workers or _num_workers(device, self._world_size)
        # Those of the second wait for those of the first; one pool could wait for itself.
        self._pools = [single_threaded_pool(workers, "load-images"), single_threaded_pool(DEPTH, "load-batches")]
        if isinstance(images, EncodedImages):
            spec = spec_of(recipe.preprocessing)
            return Stream(images, recipe.augmentation, spec, device, self._pools[0], self._note_failure)
        return Mapped(images, recipe.augmentation, device, self._pools[0])

    def _order(self, epoch: int) -> Rows:
        shuffle = order.shuffled_in_blocks if self.strategy == "stream" else order.shuffled
        return shuffle(len(self._split), self._recipe.training.seed, epoch)

    def _plan(self, shuffled: Rows, epoch: int, step: int) -> Plan:
        """Drawn for the step's images of all processes, then cut to this one's."""
        training, augmentation, spec = self._recipe.training, self._recipe.augmentation, self._recipe.preprocessing
        place = order.part(len(shuffled), self.steps_per_epoch, step)
        rows = shuffled[place]
        random = generator(training.seed, "draws", epoch, step)
        draws = draw(torch.from_numpy(rows), self._sizes(rows), epoch, augmentation, spec, random, training.seed)
        height, width = size_at(epoch, training.epochs, spec.height, spec.width, augmentation)
        cut = order.part_of_pairs if mixes(augmentation) else order.part
        mine = cut(len(rows), self._world_size, self._rank)
        stop, num_mine = place.stop, mine.stop - mine.start
        return Plan(
            epoch=epoch,
            step=step,
            rows=rows[mine],
            draws=draws.part(mine),
            height=height,
            width=width,
            num_global=len(rows),
            spare=shuffled[np.arange(stop, stop + _SPARE_PARTS * num_mine) % len(shuffled)],
        )

    def _sizes(self, rows: Rows) -> Tensor:
        sizes = self._split.images.sizes
        if sizes is not None:
            return torch.from_numpy(sizes[rows])
        height, width = self._split.pixels.height, self._split.pixels.width
        return torch.tensor([[height, width]], dtype=torch.int32).expand(len(rows), 2)

    def _fetch(self, plan: Plan) -> Batch:
        pixels, rows = self._source.fetch(plan.rows, plan.draws, plan.height, plan.width, plan.spare)
        chosen = torch.from_numpy(rows)
        batch = Batch(
            pixels=pixels,
            labels=self._moved(self._labels[chosen]),
            weights=self._moved(self._weights[chosen]),
            num_global=plan.num_global,
        )
        random = generator(self._recipe.training.seed, "mix", plan.epoch, plan.step)
        return mix(batch, self._recipe.augmentation, random)

    def _fetch_aside(self, plan: Plan) -> tuple[Batch, torch.cuda.Event | None]:
        """As `_fetch`, on a CUDA stream of its own; the event says when the batch is there."""
        if self._stream is None:
            return self._fetch(plan), None
        with torch.cuda.stream(self._stream):
            return self._fetch(plan), self._stream.record_event()

    def _moved(self, values: Tensor) -> Tensor:
        if self._device.type != "cuda":
            return values
        return values.pin_memory().to(self._device, non_blocking=True)

    def _note_failure(self, row: int, reason: str) -> None:
        if row in self._failed_rows:
            return
        self._failed_rows.add(row)
        name = (self._split.keys or self._split.ids)[row]
        self.failures.append(f"{name}: {reason}")
        log.warning("image %s does not decode and is replaced by another: %s", name, reason)


def _num_workers(device: torch.device, world_size: int) -> int:
    """One less than this process's share of the cores: processes beyond the GPUs of this host are on others."""
    here = min(world_size, torch.cuda.device_count()) if device.type == "cuda" else world_size
    return min(_MAX_WORKERS, max(1, num_cores() // here - 1))


def _hand_over(batch: Batch, ready: torch.cuda.Event) -> None:
    """Let the current stream wait for the batch, and its memory for the current stream."""
    stream = torch.cuda.current_stream(batch.pixels.device)
    stream.wait_event(ready)
    for tensor in (batch.pixels, batch.labels, batch.weights, batch.other_labels, batch.other_share):
        if tensor is not None:
            tensor.record_stream(stream)


def sample_weights(split: Split | EmbeddedSplit, num_classes: int, class_balance: bool) -> NDArray[np.float32]:
    """float32 [N] with mean 1: the images' own weights, times the inverse size of their class where asked."""
    weights = split.weights.astype(np.float64)
    if class_balance:
        counts = np.bincount(split.labels, minlength=num_classes)
        weights = weights / np.maximum(counts, 1)[split.labels]
    scaled: NDArray[np.float32] = (weights / weights.mean()).astype(np.float32)
    return scaled
