"""Wiring of an import: a model that was trained elsewhere takes the places that training has in the chain.

`snapshot` and `export` leave what the steps of these names leave in a training, so that everything after them is the
same: evaluate, compare, register, gate, build_bento, deploy.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.cli.registry import StepContext, StepSpec
from pipelines.cli.wiring import evaluation, serving
from pipelines.core.foreign import ForeignModel
from pipelines.core.runs import RunRequest
from pipelines.core.values import (
    Assembled,
    Compared,
    Evaluated,
    Exported,
    Ingested,
    Planned,
    Registered,
    Snapshotted,
    Unmeasured,
)

if TYPE_CHECKING:
    from pipelines.core.ports import ForeignNetwork
    from pipelines.steps.adopt import OpenNetwork

_ADOPTED = (
    "pipelines.steps.adopt",
    "pipelines.adapters.foreign_onnx",
    "pipelines.adapters.quantization",
    "pipelines.training.foreign",
)


def _plan(ctx: StepContext) -> Planned:
    from pipelines.core.datasets import STATIC
    from pipelines.core.sources import open_source
    from pipelines.core.sources.undivided import Undivided
    from pipelines.steps.plan import plan

    source = open_source(ctx.recipe.source, home=ctx.settings.home, endpoint_url=ctx.settings.s3_endpoint_url)
    return plan(Undivided(source), STATIC, ctx.out)


def _ingest(ctx: StepContext) -> Ingested:
    from pipelines.steps.ingest import ingest

    cache, endpoint_url = ctx.settings.home / "cache", ctx.settings.s3_endpoint_url
    shard = ctx.shard or 0
    return ingest(ctx.one("plan").folder, shard, ctx.storage, ctx.out, cache=cache, endpoint_url=endpoint_url)


def _assemble(ctx: StepContext) -> Assembled:
    from pipelines.steps.assemble import assemble

    return assemble(ctx.value("plan", Planned), [shard.folder for shard in ctx.upstream["ingest"]], ctx.out)


def _snapshot(ctx: StepContext) -> Snapshotted:
    from pipelines.steps.gather import gather

    return gather(ctx.one("assemble").folder, ctx.recipe.name, ctx.recipe.split, ctx.storage, ctx.out)


def _export(ctx: StepContext) -> Exported:
    from pipelines.adapters.quantization import OnnxQuantizer
    from pipelines.core.closure import code_digest
    from pipelines.core.datasets import blob_key
    from pipelines.core.model_package import Lineage
    from pipelines.settings import REPOSITORY
    from pipelines.steps.adopt import adopt

    lineage = Lineage(
        snapshot_id=ctx.value("snapshot", Snapshotted).snapshot_id,
        recipe_digest=ctx.recipe.digest,
        code_digest=code_digest(_ADOPTED, REPOSITORY),
        run_id=str(ctx.run),
    )
    exported, latency_ms = adopt(
        _opener(_model(ctx.request)),
        ctx.one("snapshot").folder / "manifest.parquet",
        lambda image_id: ctx.storage.read(blob_key(image_id)),
        ctx.recipe,
        lineage,
        OnnxQuantizer(),
        ctx.out,
    )
    ctx.facts.update(variant=exported.variant, latency_ms=latency_ms)
    return exported


def _opener(model: ForeignModel) -> OpenNetwork:
    def torchvision(_: object) -> ForeignNetwork:
        from pipelines.training.foreign import TorchvisionNetwork

        return TorchvisionNetwork(model)

    if model.form == "torchvision":
        return torchvision

    from pipelines.adapters.foreign_onnx import OnnxNetwork

    return lambda pixels_of: OnnxNetwork(model, pixels_of)


def _model(request: RunRequest) -> ForeignModel:
    assert request.foreign is not None
    return request.foreign


def identity(model: ForeignModel) -> str:
    """Digest of the model's files and of what was said of it, wherever it lies."""
    from pipelines.core.results import digest_json, sha256_file

    path = Path(model.file)
    files = [path]
    if model.form == "onnx":
        from pipelines.adapters.foreign_onnx import files_of

        files = files_of(path)
    return digest_json([model.words, [(one.name, sha256_file(one)) for one in files]])


def _evaluate(ctx: StepContext) -> Evaluated | Unmeasured:
    from pipelines.core import manifest
    from pipelines.core.model_package import load
    from pipelines.steps.seal import seal

    exported = ctx.one("export").folder / "package"
    rows = manifest.read(ctx.one("snapshot").folder / "manifest.parquet", ["label", "split"]).to_pylist()
    labels = {row["label"] for row in rows if row["split"] == "test"}
    if labels.isdisjoint(load(exported, verify=False).class_names):
        return seal(exported, ctx.out)
    return evaluation.evaluate(ctx)


def _register(ctx: StepContext) -> Registered:
    from pipelines.cli.model_registry import AuditedRegistry
    from pipelines.steps.register import Candidate, register

    candidate = Candidate(
        evaluated=ctx.one("evaluate").folder,
        compared=ctx.value("compare", Compared),
        parameters=_model(ctx.request).as_parameters(),
    )
    return register(candidate, ctx.recipe, AuditedRegistry(ctx.settings, ctx.actor), ctx.storage)


_SHARED = {spec.name: spec for spec in (*evaluation.SPECS, *serving.SPECS)}
SPECS: tuple[StepSpec, ...] = (
    StepSpec(name="plan", wire=_plan, roots=("pipelines.steps.plan",), sections=("source",), effect=True, first=True),
    StepSpec(
        name="ingest",
        wire=_ingest,
        roots=("pipelines.steps.ingest",),
        upstream=("plan",),
        mapped=True,
        reusable=lambda value: not value.get("num_unread"),  # a file may be there the next time
    ),
    StepSpec(name="assemble", wire=_assemble, roots=("pipelines.steps.assemble",), upstream=("plan", "ingest")),
    StepSpec(
        name="snapshot",
        wire=_snapshot,
        roots=("pipelines.steps.gather",),
        upstream=("assemble",),
        sections=("split",),
    ),
    StepSpec(
        name="export",
        wire=_export,
        roots=_ADOPTED,
        upstream=("snapshot",),
        sections=("export",),
        world=lambda _settings, _storage, request: identity(_model(request)),
        compute=True,
    ),
    StepSpec(
        name="evaluate",
        wire=_evaluate,
        roots=("pipelines.steps.evaluate", "pipelines.steps.seal", "pipelines.adapters.pictures"),
        upstream=("snapshot", "export"),
        sections=("gate",),
        compute=True,
    ),
    _SHARED["compare"],
    StepSpec(
        name="register",
        wire=_register,
        roots=("pipelines.steps.register",),
        upstream=("evaluate", "compare"),
        effect=True,
    ),
    *(_SHARED[name] for name in ("gate", "build_bento", "deploy")),
)
"""The chain of an import, in order."""
