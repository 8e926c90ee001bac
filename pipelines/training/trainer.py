"""A training from a pixel set to files: weights.pt (the best epoch's state dict) and history.json."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from pipelines.core.errors import SourceError
from pipelines.core.pixelset import PixelSet
from pipelines.core.recipe import Recipe, digest_of
from pipelines.training import devices, networks
from pipelines.training.engine import Fit
from pipelines.training.observers import HistoryFile, Observer, best_epoch

WEIGHTS = "weights.pt"
HISTORY = "history.json"


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    epochs_run: int
    best_epoch: int
    val_accuracy: float
    """Of the best epoch; 0 without a validation split."""
    device: str
    bf16: bool


def train(
    data: PixelSet, recipe: Recipe, out: Path, *, checkpoint: Path, observers: Sequence[Observer] = ()
) -> TrainingResult:
    """Train as the recipe's `model` and `training` say. A killed training goes on from `checkpoint`.

    On a CPU the files are the same bit for bit every time, interrupted or not. Raises SourceError for a pixel set
    without a training split.
    """
    if "train" not in data.splits:
        raise SourceError("the pixel set has no training split")
    compute = devices.prepare(recipe.training)
    val = data.splits.get("val")
    fit = Fit(
        network=networks.build(recipe.model, len(data.class_names)),
        train=data.splits["train"],
        val=val if val is not None and len(val) else None,
        num_classes=len(data.class_names),
        training=recipe.training,
        compute=compute,
        observers=[HistoryFile(out / HISTORY), *observers],
        checkpoint=checkpoint,
        fingerprint=_fingerprint(data, recipe),
    )
    out.mkdir(parents=True, exist_ok=True)
    fitted = fit.run()
    torch.save(dict(fitted.best), out / WEIGHTS)
    best = best_epoch(fitted.history) if fit.val else len(fitted.history)
    return TrainingResult(
        epochs_run=len(fitted.history),
        best_epoch=best,
        val_accuracy=fitted.history[best - 1].val_accuracy,
        device=compute.device.type,
        bf16=compute.bf16,
    )


def _fingerprint(data: PixelSet, recipe: Recipe) -> str:
    """Image ids are digests of the images' bytes, so they and the preprocessing stand for the pixels."""
    splits = {
        name: [list(split.ids), split.labels.tolist(), split.weights.tolist()] for name, split in data.splits.items()
    }
    sections = [digest_of(recipe.model), digest_of(recipe.training)]
    start = _sha256(Path(recipe.model.weights)) if recipe.model.weights else ""
    parts = [sections, start, list(data.class_names), dict(data.preprocessing), splits, torch.__version__]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
