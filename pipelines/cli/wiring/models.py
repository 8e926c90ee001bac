"""Wiring of the steps that make a model: prepare, train, export."""

from __future__ import annotations

from pathlib import Path

from pipelines.cli.registry import StepContext, StepSpec
from pipelines.core.model_package import Lineage
from pipelines.core.runs import RunRequest
from pipelines.core.starting_weights import identity
from pipelines.core.values import Exported, Prepared, Snapshotted, Trained

_CODE = (
    "pipelines.steps.snapshot",
    "pipelines.steps.training_set",
    "pipelines.steps.prepare",
    "pipelines.steps.prepare_embedded",
    "pipelines.steps.train",
    "pipelines.steps.export",
    "pipelines.adapters.features",
    "pipelines.adapters.quantization",
)
"""What made a model, from the list of images to the package."""
_TRAIN_SECTIONS = ("model", "training", "augmentation", "loading", "evaluation")


def _prepare(ctx: StepContext) -> Prepared:
    from pipelines.steps.prepare import prepare

    training_set = ctx.one("training_set").folder / "training_set.parquet"
    class_names = ctx.value("snapshot", Snapshotted).class_names
    if ctx.recipe.training.mode == "head":
        prepared = _prepare_embedded(ctx, training_set, class_names)
    else:
        prepared = prepare(training_set, class_names, ctx.storage, ctx.recipe, ctx.out)
    ctx.facts.update(num_images=prepared.num_train + prepared.num_val)
    return prepared


def _prepare_embedded(ctx: StepContext, training_set: Path, class_names: tuple[str, ...]) -> Prepared:
    from pipelines.cli.feature_stores import open_repository
    from pipelines.steps.prepare_embedded import prepare_embedded

    return prepare_embedded(
        training_set=training_set,
        snapshot_manifest=ctx.one("snapshot").folder / "manifest.parquet",
        class_names=class_names,
        storage=ctx.storage,
        repository=open_repository(ctx.settings, ctx.recipe.name),
        recipe=ctx.recipe,
        out=ctx.out,
    )


def _train(ctx: StepContext) -> Trained:
    from pipelines.adapters.tracking import RunTracker
    from pipelines.steps.train import train

    lineage = _lineage(ctx)
    checkpoints = _checkpoints(ctx, lineage.code_digest)
    ctx.spent.append(checkpoints)
    tags = {
        "snapshot": lineage.snapshot_id,
        "recipe": lineage.recipe_digest,
        "code": lineage.code_digest,
        "run": lineage.run_id,
    }
    trained = train(
        ctx.one("prepare").folder,
        ctx.recipe,
        RunTracker(ctx.settings, ctx.recipe.name),
        ctx.out,
        checkpoints=checkpoints,
        run_name=str(ctx.run),
        parameters=_parameters(ctx),
        tags=tags,
    )
    ctx.facts.update(num_images=ctx.value("prepare", Prepared).num_train, epochs_run=trained.epochs_run)
    return trained


def _export(ctx: StepContext) -> Exported:
    from pipelines.adapters.quantization import OnnxQuantizer
    from pipelines.core.datasets import blob_key
    from pipelines.steps.export import export

    exported, latency_ms = export(
        ctx.one("train").folder,
        ctx.one("prepare").folder,
        ctx.recipe,
        _lineage(ctx),
        OnnxQuantizer(),
        lambda image_id: ctx.storage.read(blob_key(image_id)),
        ctx.out,
    )
    ctx.facts.update(variant=exported.variant, latency_ms=latency_ms)
    return exported


def _parameters(ctx: StepContext) -> dict[str, str]:
    """The recipe as flat names, such as training.epochs."""
    from pipelines.core.recipe import to_dict

    sections = {name: keys for name, keys in to_dict(ctx.recipe).items() if isinstance(keys, dict)}
    return {f"{name}.{key}": str(value) for name, keys in sections.items() for key, value in keys.items()}


def _lineage(ctx: StepContext) -> Lineage:
    from pipelines.core.closure import code_digest
    from pipelines.settings import REPOSITORY

    return Lineage(
        snapshot_id=ctx.value("snapshot", Snapshotted).snapshot_id,
        recipe_digest=ctx.recipe.digest,
        code_digest=code_digest(_CODE, REPOSITORY),
        run_id=str(ctx.run),
    )


def _checkpoints(ctx: StepContext, code: str) -> Path:
    """The same folder for every try of the same training, whichever run it belongs to."""
    from pipelines.core.recipe import digest_of
    from pipelines.core.results import digest_json

    sections = [digest_of(getattr(ctx.recipe, section)) for section in _TRAIN_SECTIONS]
    parts = [ctx.one("prepare").digest, *sections, identity(ctx.recipe.model), code]
    return ctx.settings.home / "checkpoints" / digest_json(parts)[:32]


def _layout(request: RunRequest) -> str:
    """How the training images are to be stored, or which embedding stands for them; other changes of loading and
    augmentation need no new pixels.
    """
    from pipelines.core.layout import choice

    return choice(request.recipe)


TRAINING_SPECS: tuple[StepSpec, ...] = (
    StepSpec(
        name="prepare",
        wire=_prepare,
        roots=("pipelines.steps.prepare", "pipelines.steps.prepare_embedded", "pipelines.adapters.features"),
        upstream=("snapshot", "training_set"),
        sections=("preprocessing",),
        world=lambda _settings, _storage, request: _layout(request),
    ),
    StepSpec(
        name="train",
        wire=_train,
        roots=("pipelines.steps.train",),
        upstream=("snapshot", "prepare"),
        sections=_TRAIN_SECTIONS,
        world=lambda _settings, _storage, request: identity(request.recipe.model),
        compute=True,
    ),
    StepSpec(
        name="export",
        wire=_export,
        roots=("pipelines.steps.export", "pipelines.adapters.quantization"),
        upstream=("snapshot", "prepare", "train"),
        sections=("model", "evaluation", "export", "preprocessing"),
        compute=True,
    ),
)
SPECS = TRAINING_SPECS
