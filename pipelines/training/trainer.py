"""A training from a pixel set to files: weights.pt (the state dict that is kept) and history.json."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from pipelines.core import layout, starting_weights
from pipelines.core.errors import RecipeError, SourceError, UserError
from pipelines.core.pixelset import DecodedImages, PixelSet, Split
from pipelines.core.recipe import Recipe, digest_of
from pipelines.training import devices, heads, networks
from pipelines.training.engine.checkpoints import FORMAT, Checkpoints
from pipelines.training.engine.distribution import World
from pipelines.training.engine.fit import Fit, Fitted
from pipelines.training.observers import Epoch, HistoryFile, Observer, best_epoch
from pipelines.training.randomness import seed_of

WEIGHTS = "weights.pt"
HISTORY = "history.json"

CHECKPOINT_INTERVAL_S = 30.0
_IDS_AT_ONCE = 10_000


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    epochs_run: int
    best_epoch: int
    """Whose weights are kept: that of the lowest validation loss, or the last."""
    val_accuracy: float
    """Of the kept weights; 0 without a validation split."""
    tta_accuracy: float
    """The same with evaluation.tta; as above for a head alone."""
    device: str
    precision: str
    strategy: str
    """How images were loaded; empty for a head alone."""
    micro_batch: int
    """Images that a process passed forth and back at once; below what the recipe asks for where memory ran out."""
    failures: tuple[str, ...]
    """Images that did not decode, each with the reason; others took their place."""
    seconds: float
    """Of this process, from the first step to the last epoch's end."""


def train(
    data: PixelSet,
    recipe: Recipe,
    out: Path,
    *,
    checkpoints: Path,
    observers: Sequence[Observer] = (),
    checkpoint_every_s: float = CHECKPOINT_INTERVAL_S,
    world: World | None = None,
) -> TrainingResult:
    """Train as the recipe says. A killed training goes on from the last good checkpoint in the folder `checkpoints`.

    On a CPU, and deterministic on a GPU, the files are the same bit for bit every time, interrupted or not. With
    `checkpoint_every_s` = 0 every step is saved. In a world of several processes the leading one writes the files and
    has the observers. Raises SourceError for a pixel set without what the mode learns from, and what `Fit.run` raises.
    """
    world = world or World()
    compute = devices.prepare(recipe.training, world.local_rank)
    out.mkdir(parents=True, exist_ok=True)
    observers = [HistoryFile(out / HISTORY), *observers]
    if recipe.training.mode == "head":
        if world.size > 1:
            raise UserError("training.mode = 'head': one process solves it in seconds; start it without torchrun")
        clock = time.perf_counter()
        history = heads.train(data, recipe, compute, out / WEIGHTS, observers)
        return _head_result(history, compute, time.perf_counter() - clock)
    if "train" not in data.splits:
        raise SourceError(
            f"training.mode = {recipe.training.mode!r}: the pixel set has no training images; take one that `prepare` "
            "wrote for a recipe with this mode"
        )
    _check_pixels(data, recipe)
    torch.manual_seed(seed_of(recipe.training.seed, "network"))
    val = data.splits.get("val")
    fit = Fit(
        network=networks.build(recipe.model, len(data.class_names)),
        train=data.splits["train"],
        val=val if val is not None and len(val) else None,
        num_classes=len(data.class_names),
        recipe=recipe,
        compute=compute,
        world=world,
        observers=observers if world.leads else (),
        checkpoints=Checkpoints(
            checkpoints, fingerprint(data, recipe, compute) if world.leads else "", checkpoint_every_s
        ),
    )
    fitted = fit.run()
    if world.leads:  # before anything else that could fail
        torch.save(dict(fitted.weights), out / WEIGHTS)
    return _result(fitted, fit.tta_accuracy(fitted), compute)


def _result(fitted: Fitted, tta_accuracy: float, compute: devices.Compute) -> TrainingResult:
    return TrainingResult(
        epochs_run=len(fitted.history),
        best_epoch=fitted.kept_epoch,
        val_accuracy=fitted.history[fitted.kept_epoch - 1].val_accuracy,
        tta_accuracy=tta_accuracy,
        device=compute.device.type,
        precision=compute.precision,
        strategy=fitted.strategy,
        micro_batch=fitted.micro_batch,
        failures=fitted.failures,
        seconds=fitted.seconds,
    )


def _head_result(history: Sequence[Epoch], compute: devices.Compute, seconds: float) -> TrainingResult:
    best = best_epoch(history)
    accuracy = history[best - 1].val_accuracy
    return TrainingResult(
        epochs_run=len(history),
        best_epoch=best,
        val_accuracy=accuracy,
        tta_accuracy=accuracy,
        device=compute.device.type,
        precision="fp32",
        strategy="",
        micro_batch=0,
        failures=(),
        seconds=seconds,
    )


def _check_pixels(data: PixelSet, recipe: Recipe) -> None:
    """Raises RecipeError where the pixels were made for another recipe."""
    wanted = asdict(recipe.preprocessing)
    for key in sorted(wanted.keys() & data.preprocessing.keys()):
        if wanted[key] != data.preprocessing[key]:
            raise RecipeError(
                f"preprocessing.{key} = {wanted[key]!r}: the pixel set was made with {data.preprocessing[key]!r}; "
                "prepare it again under this recipe, or change the key"
            )
    images, crop = data.splits["train"].images, recipe.augmentation.crop
    if isinstance(images, DecodedImages) and (images.sizes is not None) != (crop == "resized"):
        stored = "whole, to be cut" if images.sizes is not None else "at the model's size"
        raise RecipeError(
            f"augmentation.crop = {crop!r}: the pixel set stores the training images {stored}; prepare it again under "
            "this recipe, or change the key"
        )


def fingerprint(data: PixelSet, recipe: Recipe, compute: devices.Compute) -> str:
    """Of all that decides on the weights: recipe, starting weights, images, device, precision and torch's version; and
    of the form that checkpoints have.

    Image ids are digests of the images' bytes, so they, the preprocessing and the layout of stored images stand for the
    pixels.
    """
    sections = (recipe.model, recipe.training, recipe.augmentation, recipe.loading)
    parts: list[Any] = [digest_of(section) for section in sections]
    parts += [starting_weights.identity(recipe.model), layout.choice(recipe)]
    parts += [list(data.class_names), dict(data.preprocessing), torch.__version__]
    parts += [compute.device.type, compute.precision, FORMAT]
    sha256 = hashlib.sha256(json.dumps(parts, sort_keys=True).encode())
    for name, split in sorted(data.splits.items()):
        sha256.update(f"{name} {len(split)} {type(split.images).__name__}".encode())
        _add(sha256, split)
    return sha256.hexdigest()


def _add(sha256: Any, split: Split) -> None:
    """A split's identity, of which there may be a million rows."""
    for start in range(0, len(split), _IDS_AT_ONCE):
        sha256.update("\n".join(split.ids[start : start + _IDS_AT_ONCE]).encode())
    sha256.update(split.labels.tobytes())
    sha256.update(split.weights.tobytes())
