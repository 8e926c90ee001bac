"""Section `clothing`: the best validation accuracy that our recipe and torchvision's reference script reach in the same
minutes, on the same photographs, from scratch."""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from bench import reference
from bench.clocks import EpochClock
from bench.harness import progress
from bench.ours import train_folder
from bench.photographs import Photographs, arrange, find
from bench.report import Report, Table
from bench.training.cifar import curve_json, load_recipe
from pipelines.core.cores import num_cores
from pipelines.core.recipe import Recipe, override, to_dict


def run(options: argparse.Namespace) -> Report:
    """Ours decodes within its minutes. Raises SourceError for data without a validation split."""
    recipe = load_recipe(options, "clothing")
    with tempfile.TemporaryDirectory(prefix="darkroom-bench-") as place:
        work = Path(place)
        found = find(options.data, work).limited(options.limit)
        folder = arrange(found, work / "arranged")
        reference.warm(found.files)
        sides: dict[str, list[dict[str, Any]]] = {"ours": [], "reference": []}
        for seed in range(options.first_seed, options.first_seed + options.seeds):
            sides["ours"].append(ours(folder, override(recipe, {"training.seed": seed}), options, work / f"{seed}"))
            sides["reference"].append(theirs(found, recipe, options, seed))
            progress(f"seed {seed}: " + ", ".join(f"{name} {each[-1]['best']:.3f}" for name, each in sides.items()))
    return _report(options, recipe, found, sides)


def ours(folder: Path, recipe: Recipe, options: argparse.Namespace, out: Path) -> dict[str, Any]:
    """From files to the end of the training; cut short where the minutes do not suffice."""
    began = time.perf_counter()
    clock = EpochClock(deadline_s=60 * options.minutes)
    result = train_folder(folder, recipe, out, [clock])
    found = curve_json(clock.curve)
    return {**found, "kept": result.val_accuracy, "all_s": time.perf_counter() - began, "epochs": result.epochs_run}


def theirs(found: Photographs, recipe: Recipe, options: argparse.Namespace, seed: int) -> dict[str, Any]:
    done = reference.train(
        found.of("train"),
        found.of("val"),
        num_classes=len(found.class_names),
        side=recipe.preprocessing.height,
        seconds=60 * options.minutes,
        workers=num_cores(),
        seed=seed,
    )
    points = [list(point) for point in done.accuracies]
    kept = done.accuracies[-1][1] if done.accuracies else 0.0
    return {"best": done.best, "kept": kept, "all_s": done.seconds, "epochs": len(points), "points": points}


def _report(
    options: argparse.Namespace, recipe: Recipe, found: Photographs, sides: dict[str, list[dict[str, Any]]]
) -> Report:
    rows = []
    for name, each in sides.items():
        best, kept = [one["best"] for one in each], [one["kept"] for one in each]
        spread = f"{100 * statistics.stdev(best):.1f}" if len(best) > 1 else ""
        seconds = statistics.mean(one["all_s"] for one in each)
        epochs = statistics.mean(one["epochs"] for one in each)
        figures = [f"{statistics.mean(best):.2%}", spread, f"{statistics.mean(kept):.2%}"]
        rows.append([name, *figures, f"{epochs:.0f}", f"{seconds:,.0f}"])
    counts = found.counts()
    title = f"{counts['train']:,} train, {counts['val']:,} val, {options.minutes:g} minutes, {options.seeds} seeds"
    columns = ["", "best val", "spread, points", "kept weights", "epochs", "seconds"]
    return Report(
        figures={"counts": counts, "minutes": options.minutes, "recipe": to_dict(recipe), **sides},
        tables=[Table(title=title, columns=columns, rows=rows)],
        notes=[f"the reference: resnet18 at {recipe.preprocessing.height} px, its defaults, {num_cores()} workers"],
    )
