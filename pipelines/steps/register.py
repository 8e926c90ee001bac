"""Keep the candidate for good: its package in the store, its version, figures and pictures in the registry."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipelines.core import model_package, package_store
from pipelines.core import recipe as recipes
from pipelines.core.errors import NotFound, RecipeError
from pipelines.core.model_package import ModelPackage
from pipelines.core.ports import ModelRegistry, Registration
from pipelines.core.recipe import Recipe
from pipelines.core.runs import RunFolder, RunId
from pipelines.core.storage import Storage
from pipelines.core.values import Compared, Registered, Trained

_PICTURES = ("confusion.png", "mistakes.png", "metrics.json")
"""What an evaluation leaves for people; there is none where nothing could be measured."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """What the steps before have left."""

    evaluated: Path
    """Result folder of `evaluate`: package/, metrics.json, pictures."""
    compared: Compared
    training_set: Path | None = None
    """training_set.parquet; None, as the two below, for a model that was trained elsewhere."""
    history: Path | None = None
    """history.json of the training."""
    trained: Trained | None = None
    parameters: Mapping[str, str] | None = None
    """What made the model; by default the recipe's keys."""


def register(candidate: Candidate, recipe: Recipe, registry: ModelRegistry, storage: Storage) -> Registered:
    """Converges: the same content is one version, whoever was killed half-way."""
    package = model_package.load(candidate.evaluated / "package")
    package_store.put(storage, package)
    made_by = _recipe_of(package, recipe, storage)
    lineage = {"recipe.json": json.dumps(recipes.to_dict(made_by), indent=1).encode()}
    if candidate.training_set is not None:
        lineage["training_set.parquet"] = candidate.training_set.read_bytes()
    for name, content in lineage.items():
        # What was written first was written nearest to the making; a later run may have reused the package.
        key = package_store.lineage_key(package.digest, name)
        if not storage.compare_and_swap(key, None, content):
            storage.refresh(key)
    version = registry.register(
        Registration(
            model=recipe.name,
            package=package,
            tracking_run_id=candidate.trained.tracking_run_id if candidate.trained else "",
            parameters=parameters(recipe) if candidate.parameters is None else candidate.parameters,
            metrics=figures(package),
            history=read_history(candidate.history) if candidate.history else [],
            pictures=[path for name in _PICTURES if (path := candidate.evaluated / name).exists()],
            tags=tags(package, candidate.compared),
        )
    )
    return Registered(
        model=version.model,
        version=version.version,
        package_digest=version.package_digest,
        tracking_run_id=version.tracking_run_id,
    )


def parameters(recipe: Recipe) -> dict[str, str]:
    """Every recipe key by its dotted path, as text."""
    found: dict[str, str] = {}
    for section in dataclasses.fields(recipe):
        value = getattr(recipe, section.name)
        if dataclasses.is_dataclass(value):
            found |= {f"{section.name}.{key.name}": str(getattr(value, key.name)) for key in dataclasses.fields(value)}
    return found


def figures(package: ModelPackage) -> dict[str, float]:
    """Test metrics with the ends of their intervals, flat."""
    found = {"test_images": float(package.description.num_test_images)}
    for name, value in package.metrics.items():
        found |= {f"test_{name}": value.value, f"test_{name}_low": value.low, f"test_{name}_high": value.high}
    return found


def tags(package: ModelPackage, compared: Compared) -> dict[str, str]:
    """What made the version, and what was said of it."""
    lineage = package.lineage
    found = {
        "snapshot": lineage.snapshot_id,
        "recipe": lineage.recipe_digest,
        "code": lineage.code_digest,
        "run": lineage.run_id,
        "package": package.digest,
        "variant": package.variant,
        "verdict": compared.verdict,
        "reason": compared.reason,
    }
    if accuracy := package.metrics.get("accuracy"):
        found["accuracy"] = f"{accuracy.value:.6f}"
        found["accuracy_low"], found["accuracy_high"] = f"{accuracy.low:.6f}", f"{accuracy.high:.6f}"
    if origin := package.origin:
        found |= {"origin": origin.form, "origin_file": origin.file, "origin_sha256": origin.sha256}
        found |= {"origin_bytes": str(origin.size_bytes), "origin_architecture": origin.architecture}
    return found


def read_history(path: Path) -> list[tuple[str, float, int]]:
    """(name, value, epoch) of every number in history.json, a list with one table an epoch."""
    table: list[Mapping[str, float | None]] = json.loads(path.read_text())
    return [
        (name, float(value), epoch)
        for epoch, row in enumerate(table, start=1)
        for name, value in row.items()
        if name != "epoch" and value is not None
    ]


def _recipe_of(package: ModelPackage, recipe: Recipe, storage: Storage) -> Recipe:
    """The recipe that made the package: where its export was reused, that of the run which made it."""
    if package.lineage.recipe_digest == recipe.digest:
        return recipe
    try:
        return RunFolder(storage, RunId.parse(package.lineage.run_id)).request().recipe
    except (NotFound, RecipeError):
        return recipe
