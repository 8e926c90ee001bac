"""Section `airbench`: KellerJordan's airbench94_muon.py and our recipe side by side on one GPU, on the same pixels.

The script is the user's own checkout (AIRBENCH=path/to/airbench94_muon.py of KellerJordan/cifar10-airbench); nothing of
it is here. It reads its images from cifar10/train.pt and test.pt, which are written from our splits.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import torch

from bench.clocks import EpochClock
from bench.defaults import allow_recompiling, torch_defaults
from bench.harness import bootstrap, mean_interval, progress
from bench.ours import accuracy_of, train_pixels
from bench.photographs import find
from bench.pixel_sets import decode_all
from bench.report import Bar, Report, Table
from bench.training.cifar import load_recipe
from bench.training.tracking import mlflow
from pipelines.core.errors import UserError
from pipelines.core.pixelset import PixelSet
from pipelines.core.ports import Tracker
from pipelines.core.preprocessing import spec_of
from pipelines.core.recipe import Recipe, override, to_dict
from pipelines.training.export import export_onnx, load_network
from pipelines.training.networks import Network
from pipelines.training.observers import History, MetricSender, Observer, Progress
from pipelines.training.trainer import WEIGHTS

BAR, STRETCH_S = 1.5, 2.6
SCHEDULE = {"training.epochs": 8, "training.batch_size": 2000}
"""The script's own, in the place of what suits a CPU."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training: seconds from its first work (the whitening) until the test accuracy with its views is there and
    all is written, without those of compiling; and that accuracy.
    """

    seconds: float
    accuracy: float
    training_s: float
    """Of these, until the accuracy is there."""
    compile_s: float = 0.0


def run(options: argparse.Namespace) -> Report:
    """Interleaved in random order, the control first and last. Raises UserError without a script."""
    if not torch.cuda.is_available():
        return Report(open="needs a GPU")
    from pipelines.adapters.tracking import RunTracker

    allow_recompiling()
    recipe = load_recipe(options, "cifar10", SCHEDULE)
    with tempfile.TemporaryDirectory(prefix="darkroom-bench-") as place:
        work = Path(place)
        data = decode_all(find(options.data, work).limited(options.limit), recipe)
        write_cache(data, work / "cifar10")
        module = load_script(options.airbench)
        control = Control(module, work)
        control.run("warmup")
        with mlflow(work / "home") as settings:
            tracker = RunTracker(settings, "airbench")
            ours(data, recipe, work / "warmup", tracker)
            runs: dict[str, list[Run]] = {"airbench": [control.run(0)], "ours": []}
            order = ["airbench", "ours"] * options.rounds
            random.Random(0).shuffle(order)
            for number, name in enumerate([*order, "airbench"], start=1):
                seeded = override(recipe, {"training.seed": number})
                turn = control.run(number) if name == "airbench" else ours(data, seeded, work / str(number), tracker)
                runs[name].append(turn)
                progress(f"{name}: {turn.seconds:.2f} s, {turn.accuracy:.4f}")
    return _report(recipe, data, runs)


def write_cache(data: PixelSet, folder: Path) -> None:
    """The script's own cache files, from our train and test splits."""
    folder.mkdir(parents=True)
    for split in ("train", "test"):
        if split not in data.splits or not len(data.splits[split]):
            raise UserError(f"DATA has no {split} split: give train/, val/ and test/ folders")
        found = data.splits[split]
        images = torch.cat([torch.from_numpy(batch) for batch in found.pixels.batches(4096)])
        table = {"images": images, "labels": torch.from_numpy(found.labels), "classes": list(data.class_names)}
        torch.save(table, folder / f"{split}.pt")


def load_script(path: str) -> ModuleType:
    """Import the checkout's script without running it. Raises UserError where there is none."""
    script = Path(path).expanduser().resolve()
    if not path or not script.is_file():
        raise UserError(f"AIRBENCH={path}: name airbench94_muon.py of a checkout of KellerJordan/cifar10-airbench")
    spec = importlib.util.spec_from_file_location("airbench94", script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["airbench94"] = module
    with _arguments(str(script)):  # it reads its own source from sys.argv[0]
        spec.loader.exec_module(module)
    return module


@contextlib.contextmanager
def _arguments(script: str) -> Iterator[None]:
    before, sys.argv = sys.argv, [script]
    try:
        yield
    finally:
        sys.argv = before


class Control:
    """The script's network, compiled once, and its training, timed by its own clock."""

    def __init__(self, module: ModuleType, folder: Path) -> None:
        self._module, self._folder = module, folder
        self._seen: list[dict[str, Any]] = []
        # What the script prints after each epoch is where its clock can be read.
        setattr(module, "print_training_details", lambda variables, **_: self._seen.append(dict(variables)))  # noqa: B010
        self._network = module.CifarNet().cuda().to(memory_format=torch.channels_last)
        self._network.compile(mode="max-autotune")

    def run(self, number: int | str) -> Run:
        self._seen.clear()
        with torch_defaults(), contextlib.chdir(self._folder):
            accuracy = float(self._module.main(number, self._network))
        seconds = float(self._seen[-1]["time_seconds"])
        return Run(seconds=seconds, training_s=seconds, accuracy=accuracy)


class Start(Observer):
    """When a training's first work begins: its whitening, or its first step where there is nothing to initialize."""

    def __init__(self) -> None:
        self.at = 0.0

    @contextlib.contextmanager
    def noted(self) -> Iterator[None]:
        initialize = Network.initialize

        def noting(network: Network, pixels: torch.Tensor) -> None:
            self._note()
            initialize(network, pixels)

        with mock.patch.object(Network, "initialize", noting):
            yield

    def on_start(self, history: History, num_epochs: int) -> None:
        self._note()

    def _note(self) -> None:
        self.at = self.at or time.perf_counter()


def ours(data: PixelSet, recipe: Recipe, out: Path, tracker: Tracker) -> Run:
    """All that step `train` does, with its observers and the checkpoints that fall due; the test images; the export."""
    clock, start = EpochClock(), Start()
    tracker.start(out.name, {"backbone": recipe.model.backbone}, {})
    with start.noted(), contextlib.redirect_stderr(io.StringIO()):
        train_pixels(data, recipe, out, [clock, start, Progress(), MetricSender(tracker.log)])
    compile_s = clock.curve.compile_s
    accuracy = accuracy_of(out, recipe, data, "test")
    training_s = time.perf_counter() - start.at - compile_s
    tracker.finish("FINISHED")
    network = load_network(out / WEIGHTS, recipe, len(data.class_names))
    export_onnx(network, 1.0, spec_of(recipe.preprocessing), out / "model.onnx")
    seconds = time.perf_counter() - start.at - compile_s
    return Run(seconds=seconds, training_s=training_s, accuracy=accuracy, compile_s=compile_s)


def _report(recipe: Recipe, data: PixelSet, runs: dict[str, list[Run]]) -> Report:
    count = min(len(each) for each in runs.values())
    pairs = zip(runs["ours"][:count], runs["airbench"][:count], strict=True)
    ratio = bootstrap([ours.seconds / theirs.seconds for ours, theirs in pairs])
    times = {name: bootstrap([one.seconds for one in each]) for name, each in runs.items()}
    accuracies = {name: mean_interval([100 * one.accuracy for one in each]) for name, each in runs.items()}
    training = {name: bootstrap([one.training_s for one in each]) for name, each in runs.items()}
    rows = [
        [name, str(len(each)), times[name].text(" s"), training[name].text(" s"), accuracies[name].text(" %")]
        for name, each in runs.items()
    ]
    counts = {split: len(found) for split, found in data.splits.items()}
    title = ", ".join(f"{count:,} {split}" for split, count in counts.items())
    return Report(
        figures={
            "counts": counts,
            "runs": {name: [asdict(one) for one in each] for name, each in runs.items()},
            "ratio": ratio.as_json(),
            "accuracy_percent": {name: found.as_json() for name, found in accuracies.items()},
            "recipe": to_dict(recipe),
        },
        tables=[
            Table(title=title, columns=["", "runs", "seconds", "of them training", "test accuracy, TTA"], rows=rows)
        ],
        bars=[
            Bar(what="our seconds to airbench's, upper end", bar=BAR, found=ratio.high, at_most=True),
            Bar(what="our seconds of training", bar=STRETCH_S, found=training["ours"].value, at_most=True),
            Bar(
                what="our accuracy, lower end, percent",
                bar=accuracies["airbench"].value,
                found=accuracies["ours"].low,
            ),
        ],
        notes=[
            "both from the whitening to the test accuracy with six views; airbench by its own clock, which leaves the "
            "validation after each epoch out; ours with validation, MLflow, files, export to ONNX, and a checkpoint "
            "where one falls due, which within ten seconds none does",
            "both sides have trained once before anything is timed; of ours, compiling again is apart: "
            f"{bootstrap([one.compile_s for one in runs['ours']]).value:.1f} s a training",
        ],
    )
