"""Wiring of the steps that judge a model: evaluate, compare, register, gate."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from pipelines.cli.registry import StepContext, StepSpec
from pipelines.core.errors import NotFound
from pipelines.core.values import Compared, Evaluated, Gated, Registered, Trained

if TYPE_CHECKING:
    from pipelines.core.ports import ModelRegistry
    from pipelines.core.storage import Storage
    from pipelines.settings import Settings
    from pipelines.steps.compare import Champion


def _read_image(ctx: StepContext) -> Callable[[str], bytes]:
    from pipelines.core.datasets import blob_key

    return lambda image_id: ctx.storage.read(blob_key(image_id))


def evaluate(ctx: StepContext) -> Evaluated:
    """Of what `export` has left, on the images of `snapshot`."""
    from pipelines.adapters.pictures import MatplotlibPictures
    from pipelines.steps import evaluate as step

    evaluated = step.evaluate(
        ctx.one("export").folder / "package",
        ctx.one("snapshot").folder / "manifest.parquet",
        _read_image(ctx),
        MatplotlibPictures(),
        ctx.out,
        confidence=ctx.recipe.gate.confidence,
        threads=ctx.recipe.training.threads,
    )
    ctx.facts.update(num_images=evaluated.num_images)
    return evaluated


def champion_of(settings: Settings, storage: Storage, registry: ModelRegistry, model: str) -> Champion | None:
    """What serves, or where nothing does, what the registry calls champion.

    The alias follows the traffic; where whoever should have moved it was killed in between, it is moved here.
    """
    from pipelines.adapters import database
    from pipelines.core import package_store
    from pipelines.core.datasets import snapshot_key
    from pipelines.steps.compare import Champion

    named, live = registry.alias(model, "champion"), database.current(settings.database_url("darkroom"), model)
    if live is not None:
        version, digest = live.build.version, live.build.package_digest
        if named is None or named.version != version:
            with suppress(NotFound):
                registry.promote(model, version)
    elif named is not None:
        version, digest = named.version, named.package_digest
    else:
        return None
    cache = settings.home / "cache"
    # Its golden pixels are not asked for: a champion that this machine could no longer serve is measured too.
    package = package_store.get(storage, digest, cache, verify=False)
    snapshot = storage.local(snapshot_key(package.lineage.snapshot_id), cache)
    return Champion(version=version, package=package, snapshot=snapshot)


def _compare(ctx: StepContext) -> Compared:
    from pipelines.cli.model_registry import AuditedRegistry
    from pipelines.cli.requests import RolledBack
    from pipelines.steps.compare import compare

    registry = AuditedRegistry(ctx.settings, ctx.actor)
    compared = compare(
        ctx.one("evaluate").folder / "package",
        ctx.one("snapshot").folder / "manifest.parquet",
        champion_of(ctx.settings, ctx.storage, registry, ctx.recipe.name),
        RolledBack(ctx.settings, registry),
        _read_image(ctx),
        ctx.out,
        gate=ctx.recipe.gate,
        split=ctx.recipe.split,
        threads=ctx.recipe.training.threads,
        deploy_unmeasured=ctx.request.deploy_unmeasured,
    )
    ctx.facts.update(num_images=compared.num_images, verdict=compared.verdict)
    return compared


def _register(ctx: StepContext) -> Registered:
    from pipelines.cli.model_registry import AuditedRegistry
    from pipelines.steps.register import Candidate, register

    candidate = Candidate(
        evaluated=ctx.one("evaluate").folder,
        training_set=ctx.one("training_set").folder / "training_set.parquet",
        history=ctx.one("train").folder / "history.json",
        trained=ctx.value("train", Trained),
        compared=ctx.value("compare", Compared),
    )
    return register(candidate, ctx.recipe, AuditedRegistry(ctx.settings, ctx.actor), ctx.storage)


def _gate(ctx: StepContext) -> Gated:
    from pipelines.core.errors import GateRejected
    from pipelines.steps.gate import gate

    compared, registered = ctx.value("compare", Compared), ctx.value("register", Registered)
    try:
        return gate(compared, registered)
    except GateRejected:
        _record_rejection(ctx, compared, registered)
        raise


def _record_rejection(ctx: StepContext, compared: Compared, registered: Registered) -> None:
    """One row of the audit log a run, however often the step is tried."""
    from pipelines.adapters import database

    url, run = ctx.settings.database_url("darkroom"), str(ctx.run)
    detail = {
        "run": run,
        "version": registered.version,
        "package_digest": registered.package_digest,
        "verdict": compared.verdict,
        "reason": compared.reason,
    }
    database.record_once(url, registered.model, "rejected", detail, ctx.actor, key="run")


SPECS: tuple[StepSpec, ...] = (
    StepSpec(
        name="evaluate",
        wire=evaluate,
        roots=("pipelines.steps.evaluate", "pipelines.adapters.pictures"),
        upstream=("snapshot", "export"),
        sections=("gate",),
        compute=True,
    ),
    StepSpec(
        name="compare",
        wire=_compare,
        roots=("pipelines.steps.compare",),
        upstream=("snapshot", "evaluate"),
        sections=("gate", "split"),
        effect=True,
    ),
    StepSpec(
        name="register",
        wire=_register,
        roots=("pipelines.steps.register",),
        upstream=("training_set", "train", "evaluate", "compare"),
        effect=True,
    ),
    StepSpec(name="gate", wire=_gate, roots=("pipelines.steps.gate",), upstream=("compare", "register"), effect=True),
)
