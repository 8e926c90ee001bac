"""Section `tracking`: what MLflow, checkpoints and observers take of a training's time.

The same training with all of them, as step `train` has it (MLflow's tables in a PostgreSQL of its own), and with none.
The share is counted directly, as the seconds for which steps wait plus the CPU time of the sending thread: a hundredth
is less than two trainings differ by on a shared machine. The ratio of both trainings stands beside it.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import statistics
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from bench.harness import Interval, Rounds, bootstrap, interleave
from bench.photographs import find_or_make
from bench.pixel_sets import convert, recipe_for
from bench.report import Bar, Report, Table
from pipelines.core.cores import num_cores
from pipelines.core.pixelset import PixelSet
from pipelines.core.preprocessing import spec_of
from pipelines.core.recipe import Recipe, override, to_dict
from pipelines.training import trainer
from pipelines.training.engine.checkpoints import Checkpoints
from pipelines.training.observers import History, HistoryFile, MetricSender, Observer, Progress

BAR = 0.01
OBSERVERS, CHECKPOINTS, SENDING, END = "observers", "checkpoints", "sending metrics", "the end in MLflow"


class Stopwatch:
    """Seconds for which the training waited, by what it waited for."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self.checkpoints = 0

    @contextlib.contextmanager
    def running(self, what: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[what] += time.perf_counter() - began


class Timed(Observer):
    """Several observers under a stopwatch."""

    def __init__(self, observers: Sequence[Observer], stopwatch: Stopwatch) -> None:
        self._observers, self._stopwatch = observers, stopwatch

    def on_start(self, history: History, num_epochs: int) -> None:
        with self._stopwatch.running(OBSERVERS):
            for one in self._observers:
                one.on_start(history, num_epochs)

    def on_step_end(self, step: int, num_steps: int) -> None:
        with self._stopwatch.running(OBSERVERS):
            for one in self._observers:
                one.on_step_end(step, num_steps)

    def on_epoch_end(self, history: History) -> None:
        with self._stopwatch.running(OBSERVERS):
            for one in self._observers:
                one.on_epoch_end(history)

    def on_finish(self, history: History) -> None:
        with self._stopwatch.running(OBSERVERS):
            for one in self._observers:
                one.on_finish(history)


def timed_checkpoints(stopwatch: Stopwatch) -> type[Checkpoints]:
    class TimedCheckpoints(Checkpoints):
        def save(self, *arguments: Any) -> None:
            with stopwatch.running(CHECKPOINTS):
                super().save(*arguments)
            stopwatch.checkpoints += 1

    return TimedCheckpoints


class NoCheckpoints(Checkpoints):
    """Never due."""

    def is_due(self, *, epoch_over: bool = False, training_over: bool = False) -> bool:
        return False


@dataclass(kw_only=True)
class Turns:
    """Trainings of both kinds, told apart by what they do besides."""

    data: PixelSet
    recipe: Recipe
    work: Path
    settings: Any
    number: int = 0
    waited: list[dict[str, float]] = field(default_factory=list)
    """Of each tracked training: the shares of its seconds."""
    checkpoints: list[int] = field(default_factory=list)
    """Of each: how many were written."""

    def bare(self) -> float:
        with mock.patch.object(trainer, "Checkpoints", NoCheckpoints):
            return self._train([])

    def tracked(self) -> float:
        """Counts what it took beside the rate."""
        from pipelines.adapters.tracking import RunTracker

        stopwatch = Stopwatch()
        tracker = RunTracker(self.settings, "tracking")
        run_id = tracker.start(f"turn {self.number}", {"backbone": self.recipe.model.backbone}, {})
        assert run_id, "MLflow's tables do not answer"
        observers: list[Observer] = [Timed([Progress(), MetricSender(tracker.log)], stopwatch)]
        with (
            mock.patch.object(trainer, "Checkpoints", timed_checkpoints(stopwatch)),
            mock.patch.object(trainer, "HistoryFile", lambda path: Timed([HistoryFile(path)], stopwatch)),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            rate = self._train(observers)
        stopwatch.seconds[SENDING] = _cpu_s_of("tracking")
        with stopwatch.running(END):
            tracker.finish("FINISHED")
        self.waited.append({what: seconds * rate / self._num_images for what, seconds in stopwatch.seconds.items()})
        self.checkpoints.append(stopwatch.checkpoints)
        return rate

    @property
    def _num_images(self) -> int:
        return self.recipe.training.epochs * len(self.data.splits["train"])

    def _train(self, observers: Sequence[Observer]) -> float:
        self.number += 1
        out = self.work / str(self.number)
        result = trainer.train(self.data, self.recipe, out, checkpoints=out / "checkpoints", observers=observers)
        return self._num_images / result.seconds


def _cpu_s_of(name: str) -> float:
    """CPU time so far of this process's thread of that name; 0 where it has ended."""
    import os

    for thread in threading.enumerate():
        if thread.name == name:
            fields = Path(f"/proc/self/task/{thread.native_id}/stat").read_text().rpartition(")")[2].split()
            return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return 0.0


def run(options: argparse.Namespace) -> Report:
    """Starts a PostgreSQL in a folder of its own."""
    epochs = options.epochs or 3
    changes = {"training.epochs": epochs, "training.threads": num_cores(), "training.batch_size": options.batch}
    recipe = override(recipe_for(options.side), {**changes, **options.set})
    with tempfile.TemporaryDirectory(prefix="darkroom-bench-") as place:
        work = Path(place)
        found = find_or_make(options.data, work, count=2000, side=2 * options.side).limited(options.limit)
        split = convert(found, recipe, work / "shards").split
        data = PixelSet(
            class_names=found.class_names,
            preprocessing=spec_of(recipe.preprocessing).to_json(),
            splits={"train": split},
        )
        with mlflow(work / "home") as settings:
            turns = Turns(data=data, recipe=recipe, work=work, settings=settings)
            turns.tracked()  # the first connection makes MLflow's tables
            turns.waited.clear()
            turns.checkpoints.clear()
            contenders = {"tracked": turns.tracked, "bare": turns.bare}
            rounds = interleave(contenders, _products, rounds=options.rounds, strict=options.strict)
    return _report(recipe, len(split), rounds, turns)


@contextlib.contextmanager
def mlflow(home: Path) -> Iterator[Any]:
    """Settings under which MLflow's tables answer."""
    from pipelines import settings as settings_module
    from pipelines.local import postgres, secrets
    from pipelines.local.ports import free_port
    from pipelines.settings import DEFAULT_PORTS

    home.mkdir(parents=True)
    (home / "ports.json").write_text(json.dumps({service: free_port() for service in DEFAULT_PORTS}))
    settings = replace(settings_module.load(), home=home, store_uri=str(home / "store"), s3_endpoint_url=None)
    secrets.ensure(settings)
    server = postgres.start(settings)
    try:
        yield settings
    finally:
        postgres.stop(server)


def _products() -> float:
    """Nobody's work: products of matrices a second."""
    factor = torch.ones(768, 768)
    began = time.perf_counter()
    for _ in range(60):
        factor @ factor
    return 60 / (time.perf_counter() - began)


def _report(recipe: Recipe, num_images: int, rounds: Rounds, turns: Turns) -> Report:
    checkpoints = turns.checkpoints
    share = bootstrap([sum(shares.values()) for shares in turns.waited])
    parts = {what: statistics.mean(shares[what] for shares in turns.waited) for what in turns.waited[0]}
    ratio = rounds.ratio("bare", "tracked")
    rows = [[name, rounds.rate(name).text(digits=1)] for name in rounds.rates]
    training = recipe.training
    title = (
        f"{recipe.model.backbone}, {recipe.preprocessing.height} px, {num_images:,} images, {training.epochs} epochs, "
        f"batches of {training.batch_size}"
    )
    percent = Interval(value=100 * share.value, low=100 * share.low, high=100 * share.high)
    return Report(
        figures={
            **rounds.as_json(),
            "share": share.as_json(),
            "parts": parts,
            "checkpoints": list(checkpoints),
            "bare / tracked": ratio.as_json(),
            "recipe": to_dict(recipe),
        },
        tables=[Table(title=title, columns=["", "images/s"], rows=rows)],
        bars=[
            Bar(what="share of the time, upper end", bar=BAR, found=share.high, at_most=True),
            Bar(what="checkpoints in each training, else their time is not in it", bar=1, found=min(checkpoints)),
        ],
        notes=[
            f"waiting and sending took {percent.text('%', 3)} of the training, "
            f"{statistics.mean(checkpoints):.1f} checkpoints included: "
            + ", ".join(f"{what} {100 * part:.3f}%" for what, part in parts.items()),
            f"images/s without to with: {ratio.text(digits=3)}; {len(rounds.dropped)} disturbed rounds dropped",
        ],
    )
