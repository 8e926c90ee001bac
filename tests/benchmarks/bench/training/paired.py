"""Section `paired`: what training from decoded shards costs in accuracy against training from untouched photographs.

Pairs share seed, recipe and images; the mean validation accuracy of the last third of the epochs is compared, since
that of a single epoch jumps by more than the bar.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
from pathlib import Path
from typing import Any

from bench import reference
from bench.clocks import EpochClock
from bench.harness import Interval, mean_interval, progress
from bench.ours import train_folder
from bench.photographs import Photographs, arrange, find
from bench.report import Bar, Report, Table
from pipelines.core import recipe as recipes
from pipelines.core.recipe import Recipe, from_dict, override, to_dict

MOST_POINTS = 0.5
STRATEGIES = {"shards": "mapped", "photographs": "stream"}


def run(options: argparse.Namespace) -> Report:
    """Raises SourceError for data without images."""
    recipe = override(_recipe(options), options.set)
    accuracies: dict[str, list[float]] = {name: [] for name in STRATEGIES}
    with tempfile.TemporaryDirectory(prefix="darkroom-bench-") as place:
        work = Path(place)
        found = find(options.data, work).limited(options.limit).resplit(options.held_out)
        folder = arrange(found, work / "arranged")
        reference.warm(found.files)
        for seed in range(options.first_seed, options.first_seed + options.seeds):
            for name, strategy in STRATEGIES.items():
                changed = override(recipe, {"training.seed": seed, "loading.strategy": strategy})
                accuracies[name].append(_accuracy(folder, changed, work / f"{seed}-{name}"))
            progress(f"seed {seed}: " + ", ".join(f"{name} {each[-1]:.4f}" for name, each in accuracies.items()))
    return _report(recipe, found, accuracies)


def _recipe(options: argparse.Namespace) -> Recipe:
    if options.recipe:
        return recipes.load(Path(options.recipe))
    side = options.side
    return from_dict(
        {
            "name": "paired",
            "preprocessing": {"height": side, "width": side},
            "model": {"backbone": "resnet18"},
            "training": {"epochs": options.epochs or 12, "batch_size": 64, "patience": 0, "keep": "last"},
            "augmentation": {"crop": "resized"},
        }
    )


def _accuracy(folder: Path, recipe: Recipe, out: Path) -> float:
    clock = EpochClock()
    train_folder(folder, recipe, out, [clock])
    accuracies = [accuracy for _, accuracy in clock.curve.points]
    return statistics.mean(accuracies[-math.ceil(len(accuracies) / 3) :])


def _report(recipe: Recipe, found: Photographs, accuracies: dict[str, list[float]]) -> Report:
    pairs = zip(accuracies["shards"], accuracies["photographs"], strict=True)
    points = [100 * (shards - photographs) for shards, photographs in pairs]
    difference: Interval = mean_interval(points)
    rows: list[list[Any]] = [
        [str(number), f"{accuracies['shards'][number]:.2%}", f"{accuracies['photographs'][number]:.2%}", f"{one:+.2f}"]
        for number, one in enumerate(points)
    ]
    counts = found.counts()
    title = f"{counts['train']:,} train, {counts['val']:,} val, {recipe.training.epochs} epochs"
    return Report(
        figures={
            "counts": counts,
            "recipe": to_dict(recipe),
            "accuracy": accuracies,
            "difference_points": difference.as_json(),
        },
        tables=[Table(title=title, columns=["seed", "shards", "photographs", "points"], rows=rows)],
        bars=[Bar(what="shards less photographs, points, lower end", bar=-MOST_POINTS, found=difference.low)],
        notes=[f"paired difference {difference.text(' points')} (mean, Student's 95% interval)"],
    )
