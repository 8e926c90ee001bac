"""When each epoch of a training was over: histories themselves hold no times, so that equal runs are equal."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pipelines.training.observers import History, Observer


@dataclass(kw_only=True)
class Curve:
    """Seconds since the start and validation accuracy, an epoch each."""

    points: list[tuple[float, float]] = field(default_factory=list)
    seconds: float = 0.0
    """From the start to the end, setting up and compiling included."""
    step_s: list[float] = field(default_factory=list)
    """Between the ends of two steps, as the host sees them."""

    def until(self, accuracy: float) -> float | None:
        """Seconds to the first epoch that reached it."""
        return next((seconds for seconds, found in self.points if found >= accuracy), None)

    @property
    def best(self) -> float:
        return max((accuracy for _, accuracy in self.points), default=0.0)

    @property
    def compile_s(self) -> float:
        """Of steps that held the host up for a second or more, which on a GPU only compiling does."""
        usual = sorted(self.step_s)[len(self.step_s) // 2] if self.step_s else 0.0
        return sum(one - usual for one in self.step_s if one > 1 + usual)

    @property
    def epoch_s(self) -> list[float]:
        """Seconds of each epoch, its validation and checkpoint included."""
        ends = [0.0, *(seconds for seconds, _ in self.points)]
        return [end - start for start, end in itertools.pairwise(ends)]


class ClockTracker:
    """Fulfils `core.ports.Tracker`: keeps the accuracies and the time at which it was told."""

    def __init__(self) -> None:
        self.curve = Curve()
        self._began = 0.0

    def start(self, name: str, params: Mapping[str, str], tags: Mapping[str, str]) -> str:
        self._began = time.perf_counter()
        return ""

    def log(self, metrics: Sequence[tuple[str, float, int]]) -> None:
        now = time.perf_counter() - self._began
        self.curve.points += [(now, value) for name, value, _ in metrics if name == "val_accuracy"]

    def finish(self, status: str) -> None:
        self.curve.seconds = time.perf_counter() - self._began


class EpochClock(Observer):
    """The same where the engine is called without the step; ends a training at `deadline_s`."""

    def __init__(self, deadline_s: float = float("inf")) -> None:
        self.curve = Curve()
        self.deadline_s = deadline_s
        self._began = self._step_ended = time.perf_counter()

    def on_start(self, history: History, num_epochs: int) -> None:
        self._step_ended = time.perf_counter()  # what came before is setting up, which `seconds` holds

    def on_step_end(self, step: int, num_steps: int) -> None:
        now = time.perf_counter()
        self.curve.step_s.append(now - self._step_ended)
        self._step_ended = now

    def on_epoch_end(self, history: History) -> None:
        self.curve.points.append((self.now(), history[-1].val_accuracy))
        self._step_ended = time.perf_counter()

    def wants_stop(self, history: History) -> bool:
        return self.now() >= self.deadline_s

    def on_finish(self, history: History) -> None:
        self.curve.seconds = self.now()

    def now(self) -> float:
        return time.perf_counter() - self._began
