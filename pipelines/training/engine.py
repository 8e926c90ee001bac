"""The training loop."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipelines.core.errors import SourceError, UserError
from pipelines.core.pixelset import Pixels, Split
from pipelines.core.recipe import Training
from pipelines.training import checkpoints
from pipelines.training.batches import num_batches, sample_weights, training_batches
from pipelines.training.checkpoints import Checkpoint
from pipelines.training.devices import Compute
from pipelines.training.networks import Network
from pipelines.training.observers import EarlyStopping, Epoch, Observer, best_epoch

_EVALUATION_BATCH = 256


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """The outcome; the network itself holds the best epoch's weights."""

    history: tuple[Epoch, ...]
    best: Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Fit:
    """One training: the parts that do not change while it runs."""

    network: Network
    train: Split
    val: Split | None
    num_classes: int
    training: Training
    compute: Compute
    observers: Sequence[Observer]
    checkpoint: Path
    fingerprint: str
    """Of recipe and data; a checkpoint of another is not taken up."""

    def run(self) -> Fitted:
        """Train to the end, from the last checkpoint where there is one.

        Raises SourceError for fewer than two images, UserError for a loss that is no number.
        """
        if len(self.train) < 2:
            raise SourceError(f"the training split has {len(self.train)} images; training needs at least 2")
        device = self.compute.device
        self.network.to(device)
        optimizer = _optimizer(self.network, self.training)
        found = checkpoints.load(self.checkpoint, self.fingerprint)
        history: list[Epoch] = list(found.history) if found else []
        best = dict(found.best) if found else {}
        if found:
            self.network.load_state_dict(found.network)
            optimizer.load_state_dict(dict(found.optimizer))
        watching = [EarlyStopping(self.training.patience if self.val else 0), *self.observers]
        for observer in watching:
            observer.on_start(history, self.training.epochs)
        while len(history) < self.training.epochs and not any(one.wants_stop(history) for one in watching):
            history.append(self._epoch(len(history), optimizer))
            if best_epoch(history) == len(history) or self.val is None:
                best = _copied(self.network)
            saved = Checkpoint(
                history=tuple(history), network=self.network.state_dict(), optimizer=optimizer.state_dict(), best=best
            )
            checkpoints.save(self.checkpoint, saved, self.fingerprint)
            for observer in watching:
                observer.on_epoch_end(history)
        for observer in watching:
            observer.on_finish(history)
        self.network.load_state_dict(best)
        return Fitted(history=tuple(history), best=best)

    def _epoch(self, epoch: int, optimizer: torch.optim.Optimizer) -> Epoch:
        """Train one epoch (counted from 0) and score the validation split."""
        torch.manual_seed(self.training.seed * 1_000_003 + epoch)  # dropout
        weights = sample_weights(self.train, self.num_classes, self.training.class_balance)
        steps = num_batches(len(self.train), self.training.batch_size)
        total = torch.zeros((), device=self.compute.device)
        rate = 0.0
        self.network.train()
        batches = training_batches(self.train, weights, self.training, epoch, self.compute.device)
        for step, (pixels, labels, weight) in enumerate(batches, start=epoch * steps):
            rate = learning_rate(step, steps * self.training.epochs, self.training)
            for group in optimizer.param_groups:
                group["lr"] = rate
            with self.compute.autocast():
                logits, _ = self.network(pixels)
            losses = nn.functional.cross_entropy(
                logits.float(), labels, reduction="none", label_smoothing=self.training.label_smoothing
            )
            loss = (losses * weight).mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            total += loss.detach() * len(labels)
        train_loss = float(total) / len(self.train)
        if not math.isfinite(train_loss):
            raise UserError(f"epoch {epoch + 1}: the loss is {train_loss}; lower training.learning_rate")
        val_loss, val_accuracy = self._validate() if self.val else (train_loss, 0.0)
        return Epoch(
            epoch=epoch + 1,
            train_loss=train_loss,
            val_loss=val_loss,
            val_accuracy=val_accuracy,
            learning_rate=rate,
        )

    def _validate(self) -> tuple[float, float]:
        assert self.val is not None
        logits = torch.from_numpy(predict(self.network, self.val.pixels, self.compute))
        labels = torch.from_numpy(self.val.labels)
        loss = float(nn.functional.cross_entropy(logits, labels))
        return loss, float((logits.argmax(1) == labels).double().mean())


def predict(network: Network, pixels_NHWC: Pixels, compute: Compute) -> NDArray[np.float32]:  # noqa: N803
    """Logits float32 [N, num classes] of uint8 [N, H, W, 3]."""
    network.eval()
    parts = []
    with torch.inference_mode(), compute.autocast():
        for start in range(0, len(pixels_NHWC), _EVALUATION_BATCH):
            pixels = torch.from_numpy(np.ascontiguousarray(pixels_NHWC[start : start + _EVALUATION_BATCH]))
            logits, _ = network(pixels.to(compute.device))
            parts.append(logits.float().cpu().numpy())
    return np.concatenate(parts)


def learning_rate(step: int, num_steps: int, training: Training) -> float:
    """Linear warm-up, then a cosine to zero. `step` counts from 0."""
    warmup = max(1, round(num_steps * training.warmup_share))
    if step < warmup:
        return training.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(1, num_steps - warmup)
    return training.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def _optimizer(network: Network, training: Training) -> torch.optim.Optimizer:
    """AdamW; biases and normalization do not decay."""
    decaying = [one for one in network.parameters() if one.ndim > 1]
    others = [one for one in network.parameters() if one.ndim <= 1]
    groups = [{"params": decaying, "weight_decay": training.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=training.learning_rate, fused=True)


def _copied(network: Network) -> dict[str, Tensor]:
    return copy.deepcopy({key: value.detach().cpu() for key, value in network.state_dict().items()})
