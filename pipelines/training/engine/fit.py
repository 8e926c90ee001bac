"""A training from its first step, or its last checkpoint, to the weights that are kept.

run            a start or a checkpoint; epochs until they are over or an observer wants to stop; what is kept
_train_epoch   batches from the loader, each a step (step.py); a checkpoint where one is due
_close_epoch   loss of the epoch, validation, best weights, checkpoint, observers
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass

import torch
from torch import nn

from pipelines.core.errors import SourceError, UserError
from pipelines.core.pixelset import Split
from pipelines.core.recipe import Recipe
from pipelines.training.augmentation.tta import Views
from pipelines.training.batch import Batch
from pipelines.training.devices import Compute
from pipelines.training.engine.checkpoints import Checkpoints, State, Weights, opened
from pipelines.training.engine.compilation import compiled
from pipelines.training.engine.distribution import Replica, World
from pipelines.training.engine.memory import is_out_of_memory
from pipelines.training.engine.prediction import predict
from pipelines.training.engine.samples import samples
from pipelines.training.engine.state import Course
from pipelines.training.engine.step import Stepper
from pipelines.training.engine.synced_norm import synchronize
from pipelines.training.loading import Loader
from pipelines.training.networks import Network
from pipelines.training.observers import EarlyStopping, Epoch, Observer, best_epoch
from pipelines.training.optimization import optimizers
from pipelines.training.optimization.averaging import Average

_STEPS_BETWEEN_SAVES = 10
"""Where processes have to talk for it."""
_STATES_SAVED = 3
"""As large as the network's own, which is one: the optimizer's, and the averaged or the best weights."""


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """The outcome."""

    history: tuple[Epoch, ...]
    weights: Weights
    """Those that are kept, on the CPU."""
    kept_epoch: int
    strategy: str
    micro_batch: int
    failures: tuple[str, ...]
    seconds: float
    """From the start, or the checkpoint, to the last epoch's end."""


@dataclass(frozen=True, kw_only=True)
class Fit:
    """One training: the parts that do not change while it runs."""

    network: Network
    """As built, on the CPU."""
    train: Split
    val: Split | None
    num_classes: int
    recipe: Recipe
    compute: Compute
    world: World
    observers: Sequence[Observer]
    checkpoints: Checkpoints

    def run(self) -> Fitted:
        """Train to the end, from the last checkpoint where there is one.

        Raises SourceError for fewer than two images, UserError for a loss that is no number or a recipe that does not
        fit the data, PlatformError where memory does not suffice.
        """
        if len(self.train) < 2:
            raise SourceError(f"the training split has {len(self.train)} images; training needs at least 2")
        saved, best = self._last_checkpoint()
        with closing(self._loader()) as loader:
            course = self._start(loader, saved, best)
            watching = [EarlyStopping(self.recipe.training.patience if self.val else 0), *self.observers]
            self.checkpoints.start(_STATES_SAVED * sum(one.nbytes for one in self.network.state_dict().values()))
            began = time.perf_counter()
            for observer in watching:
                observer.on_start(course.history, self.recipe.training.epochs)
            while not self._is_over(course, watching):
                self._train_epoch(course, loader, watching)
                self._close_epoch(course, watching)
            seconds = time.perf_counter() - began
            self._save_if_due(course, training_over=True)
            for observer in watching:
                observer.on_finish(course.history)
            return self._fitted(course, loader.strategy, seconds)

    def tta_accuracy(self, fitted: Fitted) -> float:
        """Of the kept weights on the validation split, with evaluation.tta; 0 where there is none. After `run`."""
        tta = self.recipe.evaluation.tta
        if self.val is None or tta == "none":
            return fitted.history[fitted.kept_epoch - 1].val_accuracy
        return self._validate(Views(self.network, tta))[1]

    def _start(self, loader: Loader, saved: State, best: Weights) -> Course:
        """Everything in its place on the device, at the first step or at the checkpoint's."""
        training, device = self.recipe.training, self.compute.device
        network = self.network
        if self.world.size > 1:
            synchronize(network, device)
        network.to(device)
        if not saved and network.adapts:
            network.initialize(samples(self.train, self.recipe.preprocessing))
        stepper = Stepper(
            network=network,
            replica=Replica(network, compiled(network, self.recipe, device), self.world),
            optimizers=optimizers.build(network, training),
            average=Average(network, training.ema_decay) if training.ema_decay else None,
            scaler=self.compute.scaler(),
            training=training,
            compute=self.compute,
            num_steps=training.epochs * loader.steps_per_epoch,
            micro_batch=training.micro_batch or -(-training.batch_size // self.world.size),
        )
        course = Course(
            stepper=stepper,
            steps_per_epoch=loader.steps_per_epoch,
            loss_sum=torch.zeros((), dtype=torch.float64, device=device),
        )
        if saved:
            course.resume(saved, best)
            course.loss_sum *= self.world.leads  # all processes' parts are in it
        return course

    def _train_epoch(self, course: Course, loader: Loader, watching: Sequence[Observer]) -> None:
        """What is left of this epoch's steps."""
        course.stepper.network.train()
        for batch in self._batches(course, loader):
            loss = course.stepper.step(batch, course.number)
            course.loss_sum += loss * batch.num_global
            course.step += 1
            course.failures.update(loader.failures)
            for observer in watching:
                observer.on_step_end(course.number, course.stepper.num_steps)
            if course.step < loader.steps_per_epoch and course.step % self._steps_between_saves == 0:
                self._gather_loss(course)
                self._save_if_due(course)

    def _batches(self, course: Course, loader: Loader) -> Iterator[Batch]:
        """From the step that comes next; where their pixels find no memory, the steps leave them more."""
        while True:
            try:
                yield from loader.batches(course.epoch, first=course.step)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            else:
                return
            course.stepper.make_room()

    def _close_epoch(self, course: Course, watching: Sequence[Observer]) -> None:
        """Judge the weights, keep them where they are the best, and tell the observers."""
        total = self.world.total(course.loss_sum)
        train_loss = float(total) / len(self.train)  # the one place where the epoch waits for the device
        if not math.isfinite(train_loss):
            raise UserError(f"epoch {course.epoch + 1}: the loss is {train_loss}; lower training.learning_rate")
        with course.judged():
            val_loss, val_accuracy = self._validate(course.stepper.network) if self.val else (train_loss, 0.0)
            course.close_epoch(
                Epoch(
                    epoch=course.epoch + 1,
                    train_loss=train_loss,
                    val_loss=val_loss,
                    val_accuracy=val_accuracy,
                    learning_rate=course.stepper.optimizers.rate,
                )
            )
            if self._keeps_best and best_epoch(course.history) == course.epoch:
                course.best_epoch, course.best = course.epoch, course.weights()
        self._save_if_due(course, epoch_over=True)
        for observer in watching:
            observer.on_epoch_end(course.history)

    @property
    def _steps_between_saves(self) -> int:
        """Several processes bring their losses together for a checkpoint, without knowing whether it is due."""
        return 1 if self.world.size == 1 or not self.checkpoints.interval_s else _STEPS_BETWEEN_SAVES

    def _gather_loss(self, course: Course) -> None:
        """Let the leading process have all of the epoch's loss so far, as its checkpoint should."""
        if self.world.size > 1:
            course.loss_sum = self.world.total(course.loss_sum) * self.world.leads

    @property
    def _keeps_best(self) -> bool:
        return self.val is not None and self.recipe.training.keep == "best"

    def _is_over(self, course: Course, watching: Sequence[Observer]) -> bool:
        """Processes agree: one that wants to stop is enough."""
        goes_on = course.epoch < self.recipe.training.epochs
        goes_on = goes_on and not any(one.wants_stop(course.history) for one in watching)
        return not self.world.smallest(int(goes_on), self.compute.device)

    def _validate(self, network: nn.Module) -> tuple[float, float]:
        """Mean cross-entropy and accuracy on the validation split; each process answers for its part of it."""
        assert self.val is not None
        mine = self.world.part(len(self.val))
        sums = torch.zeros(2, dtype=torch.float64)
        if mine.start < mine.stop:
            logits = torch.from_numpy(predict(network, self.val.pixels, self.compute, mine))
            labels = torch.from_numpy(self.val.labels[mine])
            sums[0] = nn.functional.cross_entropy(logits.double(), labels, reduction="sum")
            sums[1] = (logits.argmax(1) == labels).sum()
        loss, accuracy = (self.world.total(sums.to(self.compute.device)) / len(self.val)).tolist()
        return loss, accuracy

    def _fitted(self, course: Course, strategy: str, seconds: float) -> Fitted:
        if course.best_epoch:
            weights, kept_epoch = course.best, course.best_epoch
        else:
            with course.judged():
                weights, kept_epoch = course.weights(), course.epoch
        course.stepper.network.load_state_dict(weights)
        return Fitted(
            history=tuple(course.history),
            weights=weights,
            kept_epoch=kept_epoch,
            strategy=strategy,
            micro_batch=course.stepper.micro_batch,
            failures=tuple(sorted(set(self.world.gathered(sorted(course.failures))))),
            seconds=seconds,
        )

    def _loader(self) -> Loader:
        return Loader(
            self.train,
            self.recipe,
            self.num_classes,
            self.compute.device,
            rank=self.world.rank,
            world_size=self.world.size,
        )

    def _last_checkpoint(self) -> tuple[State, Weights]:
        """State and best weights of the newest good one, both empty where there is none; read by the leading process
        alone, for the others may run on machines without it.
        """
        found = self.checkpoints.newest() if self.world.leads else (b"", b"")
        state, best = (opened(self.world.leaders(data, self.compute.device)) for data in found)
        return state, best

    def _save_if_due(self, course: Course, *, epoch_over: bool = False, training_over: bool = False) -> None:
        if self.world.leads and self.checkpoints.is_due(epoch_over=epoch_over, training_over=training_over):
            self.checkpoints.save(course.number, course.saved(), course.best_epoch, course.best)
