"""Wiring of the features steps."""

from __future__ import annotations

import tempfile
from pathlib import Path

from pipelines.cli.registry import StepContext, StepSpec
from pipelines.core import datasets
from pipelines.core.results import digest_json
from pipelines.core.runs import RunRequest
from pipelines.core.storage import Storage
from pipelines.core.values import Assembled, Materialized, Snapshotted, TrainingSet, Validated
from pipelines.settings import Settings

_others: dict[str, dict[str, str]] = {}
"""The accepted intervals that a validation's key was made from; the step looks at those though the head may move on."""


def _accepted_besides(_: Settings, storage: Storage, request: RunRequest) -> str:
    """Digest of the accepted head without the run's own interval: accepting it does not make its validation stale."""
    interval = request.interval or datasets.STATIC
    head = datasets.read_head(storage, request.recipe.name)
    found = {name: digest for name, digest in head.intervals.items() if name != interval}
    _others[request.recipe.name] = found
    return digest_json(found)


def _validate(ctx: StepContext) -> Validated:
    from pipelines.adapters.expectations import GreatExpectations
    from pipelines.steps.validate import validate

    datasets.touch_activity(ctx.storage, ctx.recipe.name, str(ctx.run))
    validated = validate(
        recipe=ctx.recipe,
        run=str(ctx.run),
        assembled=ctx.value("assemble", Assembled),
        folder=ctx.one("assemble").folder,
        accepted=_others[ctx.recipe.name],
        storage=ctx.storage,
        expectations=GreatExpectations(),
        out=ctx.out,
        cache=ctx.settings.home / "cache",
    )
    ctx.facts.update(
        num_expectations=validated.num_expectations,
        num_warnings=len(validated.findings),
        warnings=[f"{one.expectation}: {one.observed} (allowed {one.threshold})" for one in validated.findings],
    )
    return validated


def _materialize(ctx: StepContext) -> Materialized:
    from pipelines.cli.feature_stores import open_embedder, open_online_store, open_repository
    from pipelines.steps.materialize import IntervalTables, materialize

    datasets.touch_activity(ctx.storage, ctx.recipe.name, str(ctx.run))
    assembled = ctx.one("assemble")
    name, cache = ctx.recipe.name, ctx.settings.home / "cache"
    head = datasets.read_head(ctx.storage, name)
    tables = IntervalTables(
        interval=ctx.value("assemble", Assembled).interval,
        manifest=assembled.folder / "manifest.parquet",
        statistics=assembled.folder / "statistics.parquet",
        digest=digest_json([assembled.files[f"{name}.parquet"] for name in ("manifest", "statistics")]),
        accepted=[
            ctx.storage.local(datasets.interval_key(name, interval, digest), cache)
            for interval, digest in head.intervals.items()
        ],
    )
    with tempfile.TemporaryDirectory(prefix="materialize-", dir=ctx.settings.home / "scratch") as scratch:
        return materialize(
            name=name,
            tables=tables,
            storage=ctx.storage,
            embedder=open_embedder(ctx.settings, ctx.storage, ctx.recipe.features.embedding),
            repository=open_repository(ctx.settings, name),
            online=open_online_store(ctx.settings, name),
            scratch=Path(scratch),
            facts=ctx.facts,
        )


def _statistics(_: Settings, storage: Storage, request: RunRequest) -> str:
    """Digest of the statistics behind the features, which the snapshot's images do not tell."""
    return datasets.read_head(storage, request.recipe.name).statistics(request.as_of)


def _training_set(ctx: StepContext) -> TrainingSet:
    from pipelines.cli.feature_stores import open_repository
    from pipelines.steps.training_set import training_set

    found = training_set(
        snapshot=ctx.value("snapshot", Snapshotted),
        snapshot_manifest=ctx.one("snapshot").folder / "manifest.parquet",
        features=ctx.recipe.features,
        repository=open_repository(ctx.settings, ctx.recipe.name),
        out=ctx.out,
    )
    ctx.facts.update(num_images=found.num_images, num_filtered=found.num_filtered)
    return found


SPECS: tuple[StepSpec, ...] = (
    StepSpec(
        name="validate",
        wire=_validate,
        roots=("pipelines.steps.validate", "pipelines.adapters.expectations"),
        upstream=("assemble",),
        sections=("validation", "split"),
        world=_accepted_besides,
    ),
    StepSpec(
        name="materialize",
        wire=_materialize,
        roots=("pipelines.steps.materialize", "pipelines.adapters.features", "pipelines.adapters.online_store"),
        upstream=("assemble", "validate"),
        sections=("features",),
        effect=True,
    ),
    StepSpec(
        name="training_set",
        wire=_training_set,
        roots=("pipelines.steps.training_set", "pipelines.adapters.features"),
        upstream=("snapshot",),
        sections=("features",),
        world=_statistics,
    ),
)
