"""All that changes while a network is fitted, and how it goes into a checkpoint and comes back."""

from __future__ import annotations

import contextlib
import dataclasses
from dataclasses import dataclass, field

from torch import Tensor

from pipelines.training.engine.checkpoints import State, Weights
from pipelines.training.engine.step import Stepper
from pipelines.training.observers import Epoch


@dataclass(kw_only=True)
class Course:
    """Where a training stands. Random numbers are derived from seed and place, so no generator is in here."""

    stepper: Stepper
    steps_per_epoch: int
    loss_sum: Tensor
    """float64: over the images of this epoch so far, on the device; with several processes, this one's part of it."""
    epoch: int = 0
    """Epochs that are over."""
    step: int = 0
    """Steps of this epoch that are over."""
    history: list[Epoch] = field(default_factory=list)
    best_epoch: int = 0
    """From 1; 0 while no weights are kept."""
    best: Weights = field(default_factory=dict)
    failures: set[str] = field(default_factory=set)

    @property
    def number(self) -> int:
        """Of the next step, from 0, over the whole training."""
        return self.epoch * self.steps_per_epoch + self.step

    def judged(self) -> contextlib.AbstractContextManager[None]:
        """Within, the network holds the weights that are judged and kept: the averaged ones where there are."""
        average = self.stepper.average
        return average.applied() if average else contextlib.nullcontext()

    def weights(self) -> Weights:
        """A copy of those that the network holds, on the CPU."""
        state = self.stepper.network.state_dict()
        return {name: value.detach().to("cpu", copy=True) for name, value in state.items()}

    def close_epoch(self, epoch: Epoch) -> None:
        self.history.append(epoch)
        self.epoch, self.step = self.epoch + 1, 0
        self.loss_sum.zero_()

    def saved(self) -> State:
        """For a checkpoint: all but the best weights."""
        stepper = self.stepper
        return {
            "epoch": self.epoch,
            "step": self.step,
            "loss_sum": self.loss_sum,
            "history": [dataclasses.asdict(epoch) for epoch in self.history],
            "best_epoch": self.best_epoch,
            "failures": sorted(self.failures),
            # 0: what recipe and number of processes make it.
            "micro_batch": stepper.micro_batch if stepper.micro_batch < stepper.asked_micro_batch else 0,
            "network": dict(stepper.network.state_dict()),
            "optimizers": stepper.optimizers.state_dict(),
            "scaler": stepper.scaler.state_dict(),
            "average": stepper.average.state_dict() if stepper.average else {},
        }

    def resume(self, saved: State, best: Weights) -> None:
        """Stand where the checkpoint stood."""
        stepper = self.stepper
        self.epoch, self.step, self.best_epoch = saved["epoch"], saved["step"], saved["best_epoch"]
        self.loss_sum.copy_(saved["loss_sum"])
        self.history = [Epoch(**epoch) for epoch in saved["history"]]
        self.failures = set(saved["failures"])
        self.best = best
        stepper.micro_batch = min(stepper.micro_batch, saved["micro_batch"] or stepper.micro_batch)
        stepper.network.load_state_dict(saved["network"])
        stepper.optimizers.load_state_dict(saved["optimizers"])
        stepper.scaler.load_state_dict(saved["scaler"])
        if stepper.average:
            stepper.average.load_state_dict(saved["average"])
