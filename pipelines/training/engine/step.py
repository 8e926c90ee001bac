"""One optimizer step: a batch forth and back, in parts where memory asks for it, then new weights."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from pipelines.core.errors import PlatformError
from pipelines.core.recipe import Training
from pipelines.training.batch import Batch
from pipelines.training.devices import Compute
from pipelines.training.engine.distribution import Replica
from pipelines.training.engine.memory import Statistics, attempt
from pipelines.training.engine.synced_norm import each_alone
from pipelines.training.networks import Network
from pipelines.training.optimization.averaging import Average
from pipelines.training.optimization.optimizers import Optimizers
from pipelines.training.randomness import seed_of

log = logging.getLogger(__name__)

_SMALLEST = 2
"""Images of a micro-batch: batch norm fails on one."""


@dataclass(kw_only=True)
class Stepper:
    """Everything that a step changes."""

    network: Network
    replica: Replica
    optimizers: Optimizers
    average: Average | None
    scaler: torch.amp.GradScaler
    training: Training
    compute: Compute
    num_steps: int
    """Of the whole training."""
    micro_batch: int
    """Most images that this process passes forth and back at once (one more where a single one would be left over);
    falls where memory does not suffice."""
    asked_micro_batch: int = field(init=False)
    """What `micro_batch` was at the start."""
    statistics: Statistics = field(init=False)
    """Those before the step."""
    tried_px: int = field(default=0, init=False)
    """Pixels of the largest images of which `micro_batch` are known to fit, where processes agree beforehand."""

    def __post_init__(self) -> None:
        self.asked_micro_batch = self.micro_batch
        self.statistics = Statistics(self.network)

    def step(self, batch: Batch, number: int) -> Tensor:
        """Take the step of this number, from 0. Returns what this process's images add to the batch's mean loss, on
        the device: nothing here waits for a GPU.

        Raises PlatformError where memory does not suffice for the smallest micro-batch.
        """
        if not self.replica.is_compiled:  # what no longer asks for gradients would be compiled anew; its rate is zero
            self.network.set_progress(number / self.num_steps)
        self.optimizers.set_progress(number, self.num_steps)
        self.replica.prepare()
        self._agree_on_micro_batch(batch)
        self.replica.prepare()  # anew where that took another graph
        loss = self._gradients(batch, number)
        self._update_weights()
        return loss

    def _gradients(self, batch: Batch, number: int) -> Tensor:
        """Set the gradients of the batch's loss; where memory runs out, start over with smaller parts."""
        self.statistics.save()
        while True:
            # Dropout and stochastic depth depend on seed and place, like all randomness here.
            self.compute.seed(seed_of(self.training.seed, "step", number, self.replica.world.rank))
            self.optimizers.zero_grad()
            loss = attempt(lambda: self._forth_and_back(batch))
            if loss is not None:
                return loss
            self.make_room()
            self.statistics.restore()

    def make_room(self) -> None:
        """Memory has run out, in a step or beside it: take smaller parts from now on.

        Raises PlatformError where there are none, or where other processes would have to.
        """
        if self.replica.world.size > 1:  # the others wait for this process's statistics and gradients
            raise PlatformError(
                f"out of memory in a step with {self.micro_batch} images at once, where {self.replica.world.size} "
                f"processes cannot go on without each other: set training.micro_batch = {self._half()} and start "
                "the training anew"
            )
        self.optimizers.zero_grad()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self._halve()

    def _forth_and_back(self, batch: Batch) -> Tensor:
        """Gradients add up over the micro-batches, and over the processes, to those of the whole batch."""
        world = self.replica.world
        parts = split(batch, num_parts(batch.num_global, world.size, self.micro_batch))
        total = torch.zeros((), device=self.compute.device)
        for number, part in enumerate(parts, start=1):
            with self.replica.gathering() if number < len(parts) else contextlib.nullcontext():
                with self.compute.autocast():
                    logits, _ = self.replica(part.pixels)
                loss = loss_sum(logits, part, self.training.label_smoothing) / batch.num_global
                # Between processes gradients are averaged, where they should add up.
                self.scaler.scale(loss * world.size).backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        return total

    def _update_weights(self) -> None:
        if self.training.clip_norm:
            self.optimizers.unscale(self.scaler)
            nn.utils.clip_grad_norm_(self.network.parameters(), self.training.clip_norm)
        self.optimizers.step(self.scaler)
        self.scaler.update()
        if self.average:
            self.average.update()

    def _half(self) -> int:
        """The next smaller micro-batch. Raises PlatformError where there is none."""
        if self.micro_batch <= _SMALLEST:
            raise PlatformError(
                f"out of memory with {self.micro_batch} images at once: take a smaller model.backbone or a smaller "
                "preprocessing.height and width"
            )
        return max(_SMALLEST, self.micro_batch // 2)

    def _halve(self) -> None:
        """Raises PlatformError where there is nothing to halve."""
        self.micro_batch = self._half()
        self.replica.expect_any_size()
        if self.replica.world.leads:
            log.warning(
                "out of memory: going on with %d images at once, gradients added up to batches of %d",
                self.micro_batch,
                self.training.batch_size,
            )

    def _agree_on_micro_batch(self, batch: Batch) -> None:
        """Between processes: before images of a new size, each tries alone whether its memory suffices."""
        world = self.replica.world
        if world.size == 1:
            return
        size_px = batch.pixels[0, ..., 0].numel()
        while size_px > self.tried_px:
            self.statistics.save()
            part = split(batch, num_parts(batch.num_global, world.size, self.micro_batch))[0]
            with each_alone(self.network):
                found = attempt(lambda part=part: self._try(part))  # type: ignore[misc]
            self.optimizers.zero_grad()
            self.statistics.restore()
            if world.smallest(int(found is not None), self.compute.device):
                self.tried_px = size_px
            else:
                self._halve()

    def _try(self, part: Batch) -> Tensor:
        """Forth and back, with all the memory taken that a step would find taken.

        Gradients and the exchange's buffers are there; of the optimizers' state room is held for what they lack.
        """
        held = torch.empty(self.optimizers.missing_bytes, dtype=torch.uint8, device=self.compute.device)
        # A batch norm that waits for no other process fails on one image.
        pixels = part.pixels if len(part) >= _SMALLEST else part.pixels.expand(_SMALLEST, *part.pixels.shape[1:])
        with self.compute.autocast():
            logits, _ = self.replica.alone(pixels)
        loss = loss_sum(logits[: len(part)], part, self.training.label_smoothing)
        loss.backward()  # type: ignore[no-untyped-call]
        del held
        return loss.detach()


def num_parts(num_global: int, num_processes: int, micro_batch: int) -> int:
    """Micro-batches of a step, the same number in every process, none of a single image where that can be."""
    largest = -(-num_global // num_processes)
    return max(1, min(-(-largest // micro_batch), largest // _SMALLEST))


def split(batch: Batch, num_parts: int) -> list[Batch]:
    """Nearly equal parts of a batch."""
    if num_parts == 1:
        return [batch]
    fields: dict[str, Any] = {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
    pieces = {name: value.tensor_split(num_parts) for name, value in fields.items() if isinstance(value, Tensor)}
    return [
        Batch(**{**fields, **{name: found[number] for name, found in pieces.items()}}) for number in range(num_parts)
    ]


def loss_sum(logits: Tensor, batch: Batch, label_smoothing: float) -> Tensor:
    """Sum over images of weighted cross-entropy; of a mixed image, that of both its classes by their shares."""
    logits = logits.float()
    losses = _losses(logits, batch.labels, label_smoothing)
    if batch.other_labels is not None and batch.other_share is not None:
        losses = losses.lerp(_losses(logits, batch.other_labels, label_smoothing), batch.other_share)
    return (losses * batch.weights).sum()


def _losses(logits: Tensor, labels: Tensor, label_smoothing: float) -> Tensor:
    return nn.functional.cross_entropy(logits, labels, reduction="none", label_smoothing=label_smoothing)
