"""A recipe: all sections, and what keys of several must agree on."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from dataclasses import dataclass, field
from typing import Any

from pipelines.core.errors import RecipeError
from pipelines.core.recipe import texts
from pipelines.core.recipe.sections import (
    BACKBONES,
    OWN_BACKBONES,
    TORCHVISION,
    Augmentation,
    Evaluation,
    Export,
    Features,
    Gate,
    Loading,
    Model,
    Preprocessing,
    Rollout,
    Schedule,
    Source,
    Split,
    Training,
    Validation,
)

NAME_PATTERN = re.compile(r"[a-z][a-z0-9-]{0,38}[a-z0-9]")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One dataset and its model. `name` namespaces the head, features, registered model, deployment and route."""

    name: str
    source: Source = field(default_factory=Source)
    validation: Validation = field(default_factory=Validation)
    split: Split = field(default_factory=Split)
    features: Features = field(default_factory=Features)
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    model: Model = field(default_factory=Model)
    training: Training = field(default_factory=Training)
    augmentation: Augmentation = field(default_factory=Augmentation)
    loading: Loading = field(default_factory=Loading)
    evaluation: Evaluation = field(default_factory=Evaluation)
    export: Export = field(default_factory=Export)
    gate: Gate = field(default_factory=Gate)
    rollout: Rollout = field(default_factory=Rollout)
    schedule: Schedule = field(default_factory=Schedule)

    def __post_init__(self) -> None:
        if not NAME_PATTERN.fullmatch(self.name):
            raise RecipeError(
                f"name = {self.name!r}: 2 to 40 lower-case letters, digits and hyphens, starting with a letter"
            )
        if self.split.val_share + self.split.test_share >= 0.9:
            raise RecipeError("split.val_share + split.test_share: must leave at least a tenth for training")
        texts.check(self.source, self.features, self.schedule)
        _check_training(self)
        _check_weights(self.model)

    @property
    def digest(self) -> str:
        return digest_of(self)


def _check_training(recipe: Recipe) -> None:
    """What keys of several sections must agree on. Raises RecipeError."""
    model, training = recipe.model, recipe.training
    if training.mode == "finetune" and not model.weights:
        raise RecipeError("training.mode = 'finetune': model.weights must name the file to start from")
    if training.mode == "head" and model.weights:
        raise RecipeError(
            "training.mode = 'head': the embedding is that of features.embedding; leave model.weights empty"
        )
    if training.mode == "head" and recipe.features.embedding.startswith("package:"):
        raise RecipeError(
            f"features.embedding = {recipe.features.embedding!r}: with training.mode = 'head' it must be "
            "'hog-color-v1' or 'torchvision:<backbone>:<weights file>'; a package's graph cannot be part of a network"
        )
    if training.warmup_share + training.cooldown_share > 1 and training.schedule == "trapezoid":
        raise RecipeError("training.warmup_share + training.cooldown_share: must be at most 1")
    if training.mode == "head" and recipe.evaluation.tta != "none":
        raise RecipeError(
            f"evaluation.tta = {recipe.evaluation.tta!r}: must be 'none' with training.mode = 'head', which learns and "
            "is judged on embeddings of the images as they are"
        )
    for key in ("weight_decay", "momentum"):
        if -1 < getattr(training, key) < 0:
            raise RecipeError(
                f"training.{key} = {getattr(training, key)!r}: must be -1 (the optimizer's own) or positive"
            )
    if training.micro_batch == 1:
        raise RecipeError("training.micro_batch = 1: must be 0 or at least 2, for batch norm needs two images")
    if training.mode != "head":
        _check_sides(recipe)
    if 0 < model.embedding_dim < 8:
        raise RecipeError(f"model.embedding_dim = {model.embedding_dim}: must be 0 or at least 8")


def _check_weights(model: Model) -> None:
    if model.weights == TORCHVISION and model.backbone in OWN_BACKBONES:
        theirs = [name for name in BACKBONES if name not in OWN_BACKBONES]
        raise RecipeError(
            f"model.weights = {TORCHVISION!r}: torchvision has published none for model.backbone = {model.backbone!r}; "
            f"take a backbone of {', '.join(theirs)}, or name a state-dict file"
        )


_LEAST_SIDES_PX = {"airbench": 16, "convnext_tiny": 32}
"""Below which a backbone has no pixel left to go on with."""


def _check_sides(recipe: Recipe) -> None:
    least = _LEAST_SIDES_PX.get(recipe.model.backbone, 0)
    side, start = min(recipe.preprocessing.height, recipe.preprocessing.width), recipe.augmentation.start_size
    if side < least:
        raise RecipeError(
            f"model.backbone = {recipe.model.backbone!r}: preprocessing.height and width must be at least {least}"
        )
    if side * start < least:
        raise RecipeError(
            f"augmentation.start_size = {start:g}: training would begin at {side * start:g} px, and model.backbone = "
            f"{recipe.model.backbone!r} needs {least}; set {least / side:.2g} or more"
        )


def digest_of(section: Any) -> str:
    """SHA-256 of a dataclass's canonical JSON."""
    text = json.dumps(dataclasses.asdict(section), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
