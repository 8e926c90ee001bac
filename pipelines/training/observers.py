"""What may watch a training and ask it to stop.

Observers see the whole history each time and keep no state that matters: after a resume they see the same history as
without the interruption.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """One pass over the training split. No times: equal runs have equal histories."""

    epoch: int
    """From 1."""
    train_loss: float
    val_loss: float
    """Mean cross-entropy without smoothing or weights; that of training where there is no validation split."""
    val_accuracy: float
    learning_rate: float
    """At the epoch's end."""


History = Sequence[Epoch]

_LINE_INTERVAL_S = 60.0


class Observer:
    """Override what you need."""

    def on_start(self, history: History, num_epochs: int) -> None:
        """Before the first epoch of this process; `history` is not empty after a resume."""

    def on_step_end(self, step: int, num_steps: int) -> None:
        """After `step` of the training's steps. Must be quick and not look at the device: the next step waits."""

    def on_epoch_end(self, history: History) -> None:
        """After each epoch; again after a kill where its checkpoint was not due yet."""

    def wants_stop(self, history: History) -> bool:  # noqa: ARG002
        """Asked before each epoch; True ends the training."""
        return False

    def on_finish(self, history: History) -> None:
        """After the last epoch."""


class EarlyStopping(Observer):
    """Stops after `patience` epochs without a better validation loss; 0 never stops."""

    def __init__(self, patience: int) -> None:
        self.patience = patience

    def wants_stop(self, history: History) -> bool:
        return 0 < self.patience <= len(history) - best_epoch(history)


class HistoryFile(Observer):
    """Writes history.json when the training is over; null stands for a loss that is no finite number."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_finish(self, history: History) -> None:
        table = [
            {name: value if math.isfinite(value) else None for name, value in asdict(epoch).items()}
            for epoch in history
        ]
        self.path.write_text(json.dumps(table, indent=1, allow_nan=False) + "\n")


class MetricSender(Observer):
    """Hands each epoch's numbers on as one batch of (name, value, step)."""

    def __init__(self, send: Callable[[Sequence[tuple[str, float, int]]], None]) -> None:
        self.send = send
        self.num_sent = 0

    def on_start(self, history: History, num_epochs: int) -> None:  # noqa: ARG002
        self._send_new(history)

    def on_epoch_end(self, history: History) -> None:
        self._send_new(history)

    def _send_new(self, history: History) -> None:
        new = history[self.num_sent :]
        self.num_sent = len(history)
        metrics = [
            (name, float(value), epoch.epoch)
            for epoch in new
            for name, value in asdict(epoch).items()
            if name != "epoch"
        ]
        if metrics:
            self.send(metrics)


class Progress(Observer):
    """One line an epoch on standard error, and one a minute within long epochs."""

    def on_start(self, history: History, num_epochs: int) -> None:
        self.num_epochs = num_epochs
        self.clock = self.last_line = time.perf_counter()
        if history:
            sys.stderr.write(f"resumed after epoch {len(history)} of {num_epochs}\n")

    def on_step_end(self, step: int, num_steps: int) -> None:
        now = time.perf_counter()
        if now - self.last_line >= _LINE_INTERVAL_S:
            self.last_line = now
            sys.stderr.write(f"step {step}/{num_steps}\n")
            sys.stderr.flush()

    def on_epoch_end(self, history: History) -> None:
        last, now = history[-1], time.perf_counter()
        sys.stderr.write(
            f"epoch {last.epoch}/{self.num_epochs}  train_loss {last.train_loss:.4f}  val_loss {last.val_loss:.4f}  "
            f"val_accuracy {last.val_accuracy:.4f}  {now - self.clock:.1f} s\n"
        )
        sys.stderr.flush()
        self.clock = self.last_line = now


def best_epoch(history: History) -> int:
    """The epoch of the lowest validation loss, the earliest of equals; 0 where no epoch has a finite one."""
    judged = [epoch for epoch in history if math.isfinite(epoch.val_loss)]
    return min(judged, key=lambda epoch: epoch.val_loss).epoch if judged else 0
