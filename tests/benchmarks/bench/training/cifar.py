"""Section `cifar`: the published figure on small images, through the chain's own steps, one training a seed."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from bench.clocks import ClockTracker, Curve
from bench.harness import mean_interval, progress
from bench.report import REPOSITORY, Bar, Report, Table
from pipelines.core import pixelset
from pipelines.core import recipe as recipes
from pipelines.core.recipe import Recipe, override

TARGET, STRETCH, MINUTES = 0.93, 0.94, 30
ALSO = 0.90
"""The accuracy whose time is stated too."""


@dataclass(frozen=True, kw_only=True)
class Judged:
    """One seed's outcome. Accuracies on val and test, plain and with the recipe's test-time augmentation."""

    seed: int
    epochs: int
    training_s: float
    to_90_s: float | None
    val: float
    test: float
    val_tta: float
    test_tta: float
    points: list[tuple[float, float]]
    """Seconds and validation accuracy, plain, after each epoch."""


def load_recipe(options: argparse.Namespace, name: str, changes: Mapping[str, Any] = MappingProxyType({})) -> Recipe:
    """The file of --recipe; or the registered recipe of that name, with a section's own `changes`. Those of --set come
    last.
    """
    if options.recipe:
        return override(recipes.load(Path(options.recipe)), options.set)
    registered = recipes.load(REPOSITORY / "pipelines" / "recipes" / f"{name}.toml")
    return override(registered, {**changes, **options.set})


def run(options: argparse.Namespace) -> Report:
    """Raises SourceError or UserError for data or a recipe that does not do."""
    from bench.chain_data import take  # the whole environment; other sections run where there is only torch

    recipe = override(load_recipe(options, "cifar10"), {"export.int8": False})
    with tempfile.TemporaryDirectory(prefix="darkroom-bench-") as folder:
        work = Path(folder)
        progress("ingest, snapshot, prepare")
        data = take(options.data, recipe, work)
        prepared = _prepare(data, recipe)
        counts = data.snapshotted.split_counts
        found = [_seed(data, prepared, recipe, options.first_seed + number) for number in range(options.seeds)]
    return _report(recipe, counts, found, data.notes)


def _prepare(data: Any, recipe: Recipe) -> Path:
    from pipelines.steps.prepare import prepare

    out = Path(data.work) / "prepared"
    out.mkdir()
    prepare(data.training_set, data.snapshotted.class_names, data.storage, recipe, out)
    return out


def _seed(data: Any, prepared: Path, recipe: Recipe, seed: int) -> Judged:
    from pipelines.steps.train import train

    recipe = override(recipe, {"training.seed": seed})
    out = data.work / f"seed-{seed}"
    (out / "train").mkdir(parents=True)
    tracker = ClockTracker()
    train(
        prepared,
        recipe,
        tracker,
        out / "train",
        checkpoints=out / "checkpoints",
        run_name=f"seed {seed}",
        parameters={},
        tags={},
    )
    curve = tracker.curve
    progress(f"seed {seed}: {curve.seconds:.0f} s, best val {curve.best:.4f}")
    accuracies = [_judge(data, prepared, out, override(recipe, {"evaluation.tta": tta})) for tta in _views(recipe)]
    (val, test), (val_tta, test_tta) = accuracies[0], accuracies[-1]
    return Judged(
        seed=seed,
        epochs=len(curve.points),
        training_s=curve.seconds,
        to_90_s=curve.until(ALSO),
        val=val,
        test=test,
        val_tta=val_tta,
        test_tta=test_tta,
        points=curve.points,
    )


def _views(recipe: Recipe) -> list[str]:
    """Without test-time augmentation and with the recipe's, or the strongest where it has none."""
    return ["none", recipe.evaluation.tta if recipe.evaluation.tta != "none" else "mirror_shift"]


def _judge(data: Any, prepared: Path, out: Path, recipe: Recipe) -> tuple[float, float]:
    """Accuracy on val and test of the exported package: val by its pixels, test by the files' bytes."""
    from bench.chain_data import judge
    from pipelines.core import model_package
    from pipelines.core.inference import Classifier

    place = out / recipe.evaluation.tta
    _, evaluated = judge(data, prepared, out / "train", recipe, place, recipe.training.threads)
    classifier = Classifier(model_package.load(place / "export" / "package"), threads=recipe.training.threads)
    val = pixelset.load(prepared).splits["val"]
    logits = np.concatenate([classifier.predict_pixels(batch).logits for batch in val.pixels.batches(512)])
    return float((logits.argmax(axis=1) == val.labels).mean()), evaluated.accuracy.value


def _report(recipe: Recipe, counts: dict[str, int], found: list[Judged], notes: tuple[str, ...]) -> Report:
    names = ("val", "val_tta", "test", "test_tta", "training_s")
    means = {name: mean_interval([getattr(one, name) for one in found]) for name in names}
    spread = {name: float(np.std([getattr(one, name) for one in found], ddof=1)) for name in names if len(found) > 1}
    best = "test_tta" if recipe.evaluation.tta != "none" else "test"
    rows = [
        [
            str(one.seed),
            str(one.epochs),
            f"{one.to_90_s:.0f}" if one.to_90_s is not None else "never",
            f"{one.training_s:.0f}",
            *(f"{value:.2%}" for value in (one.val, one.val_tta, one.test, one.test_tta)),
        ]
        for one in found
    ]
    rows.append(
        ["mean", "", "", f"{means['training_s'].value:.0f}", *(f"{means[name].value:.2%}" for name in names[:4])]
    )
    title = f"{recipe.name}: {', '.join(f'{count:,} {split}' for split, count in counts.items())}"
    columns = ["seed", "epochs", "s to 90%", "training s", "val", "val, TTA", "test", "test, TTA"]
    bars = [
        Bar(what=f"mean test accuracy (tta {recipe.evaluation.tta})", bar=TARGET, found=means[best].value),
        Bar(what="the same, stretch", bar=STRETCH, found=means[best].value),
        Bar(
            what="longest training, minutes",
            bar=MINUTES,
            found=max(one.training_s for one in found) / 60,
            at_most=True,
        ),
    ]
    return Report(
        figures={
            "counts": counts,
            "seeds": [asdict(one) for one in found],
            "mean": {name: interval.as_json() for name, interval in means.items()},
            "spread": spread,
            "recipe": recipes.to_dict(recipe),
        },
        tables=[Table(title=title, columns=columns, rows=rows)],
        bars=bars,
        notes=notes,
    )


def curve_json(curve: Curve) -> dict[str, Any]:
    return {"seconds": curve.seconds, "best": curve.best, "points": [list(point) for point in curve.points]}
