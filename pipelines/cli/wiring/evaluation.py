"""Wiring of the steps that judge a model: evaluate, compare, register, gate."""

from __future__ import annotations

from collections.abc import Callable

from pipelines.cli.registry import StepContext, StepSpec
from pipelines.core.values import Compared, Evaluated, Gated, Registered, Trained


def _read_image(ctx: StepContext) -> Callable[[str], bytes]:
    from pipelines.core.datasets import blob_key

    return lambda image_id: ctx.storage.read(blob_key(image_id))


def _evaluate(ctx: StepContext) -> Evaluated:
    from pipelines.adapters.pictures import MatplotlibPictures
    from pipelines.steps.evaluate import evaluate

    evaluated = evaluate(
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


def _compare(ctx: StepContext) -> Compared:
    from pipelines.adapters.tracking import MlflowRegistry
    from pipelines.core import package_store
    from pipelines.core.datasets import snapshot_key
    from pipelines.steps.compare import Champion, compare

    cache = ctx.settings.home / "cache"
    version = MlflowRegistry(ctx.settings).alias(ctx.recipe.name, "champion")
    champion = None
    if version is not None:
        # Its golden pixels are not asked for: a champion that this machine could no longer serve is measured too.
        package = package_store.get(ctx.storage, version.package_digest, cache, verify=False)
        snapshot = ctx.storage.local(snapshot_key(package.lineage.snapshot_id), cache)
        champion = Champion(version=version.version, package=package, snapshot=snapshot)
    compared = compare(
        ctx.one("evaluate").folder / "package",
        ctx.one("snapshot").folder / "manifest.parquet",
        champion,
        _read_image(ctx),
        ctx.out,
        gate=ctx.recipe.gate,
        split=ctx.recipe.split,
        threads=ctx.recipe.training.threads,
    )
    ctx.facts.update(num_images=compared.num_images, verdict=compared.verdict)
    return compared


def _register(ctx: StepContext) -> Registered:
    from pipelines.adapters.tracking import MlflowRegistry
    from pipelines.steps.register import Candidate, register

    candidate = Candidate(
        evaluated=ctx.one("evaluate").folder,
        training_set=ctx.one("training_set").folder / "training_set.parquet",
        history=ctx.one("train").folder / "history.json",
        trained=ctx.value("train", Trained),
        compared=ctx.value("compare", Compared),
    )
    return register(candidate, ctx.recipe, MlflowRegistry(ctx.settings), ctx.storage)


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
    """One row of the history a run, however often the step is tried."""
    from pipelines.adapters import database

    url, run = ctx.settings.database_url("darkroom"), str(ctx.run)
    detail = {
        "run": run,
        "version": registered.version,
        "package_digest": registered.package_digest,
        "verdict": compared.verdict,
        "reason": compared.reason,
    }
    known = (event for event in database.history(url, registered.model) if event.event == "rejected")
    if not any(event.detail.get("run") == run for event in known):
        database.record(url, registered.model, "rejected", detail)


SPECS: tuple[StepSpec, ...] = (
    StepSpec(
        name="evaluate",
        wire=_evaluate,
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
