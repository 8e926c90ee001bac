"""Wiring of the data steps."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime

from pipelines.cli.past_runs import trained_by
from pipelines.cli.registry import StepContext, StepSpec
from pipelines.core import datasets
from pipelines.core.datasets import STATIC, Head
from pipelines.core.errors import DarkroomError
from pipelines.core.runs import RunFolder, RunRequest
from pipelines.core.storage import Storage
from pipelines.core.values import Accepted, Assembled, Ingested, Planned, Settled, Snapshotted
from pipelines.settings import Settings

ASSET_TRIGGERED = "asset_triggered__"
"""How the ids of runs begin that new data started."""


def _plan(ctx: StepContext) -> Planned:
    from pipelines.core.sources import open_source
    from pipelines.steps.plan import plan

    name, run, interval = ctx.recipe.name, str(ctx.run), ctx.request.interval or STATIC
    datasets.touch_activity(ctx.storage, name, run)
    try:
        source = open_source(ctx.recipe.source, home=ctx.settings.home, endpoint_url=ctx.settings.s3_endpoint_url)
        planned = plan(source, interval, ctx.out)
    except DarkroomError:
        datasets.finish_activity(ctx.storage, name, run)  # training need not wait for it
        raise
    ctx.facts["num_files"] = planned.num_files
    if not planned.num_files and interval not in datasets.read_head(ctx.storage, name).parts:
        ctx.facts["nothing_to_do"] = True  # a day without images, as most are: the run ends here
        datasets.finish_activity(ctx.storage, name, run)
    return planned


def _ingest(ctx: StepContext) -> Ingested:
    from pipelines.steps.ingest import ingest

    ingested = ingest(
        ctx.one("plan").folder,
        ctx.shard or 0,
        ctx.storage,
        ctx.out,
        cache=ctx.settings.home / "cache",
        endpoint_url=ctx.settings.s3_endpoint_url,
        alive=_now_and_then(lambda: datasets.touch_activity(ctx.storage, ctx.recipe.name, str(ctx.run))),
    )
    ctx.facts.update(
        num_images=ingested.num_images, num_quarantined=ingested.num_quarantined, num_unread=ingested.num_unread
    )
    return ingested


def _now_and_then(function: Callable[[], None], every_s: float = 30.0) -> Callable[[], None]:
    """Calls through at once, then at most every so many seconds."""
    last = -every_s

    def call() -> None:
        nonlocal last
        if time.monotonic() - last >= every_s:
            last = time.monotonic()
            function()

    return call


def _assemble(ctx: StepContext) -> Assembled:
    from pipelines.steps.assemble import assemble

    datasets.touch_activity(ctx.storage, ctx.recipe.name, str(ctx.run))
    assembled = assemble(ctx.value("plan", Planned), [shard.folder for shard in ctx.upstream["ingest"]], ctx.out)
    ctx.facts.update(num_images=assembled.num_images, num_quarantined=assembled.num_quarantined)
    return assembled


def _accept(ctx: StepContext) -> Accepted:
    from pipelines.steps.accept import accept

    interval = ctx.value("assemble", Assembled).interval
    return accept(ctx.storage, ctx.recipe.name, interval, str(ctx.run), ctx.one("assemble").folder, ctx.out)


def _settle(ctx: StepContext) -> Settled:
    from pipelines.steps.settle import settle

    now = datetime.now(UTC)
    settled = settle(ctx.storage, ctx.recipe.name, ctx.recipe.schedule.cool_down_s, now)
    ctx.facts["waited_s"] = _waited_s(ctx, now)
    ctx.facts["wait_s"] = settled.wait_s
    if settled.wait_s > 0 or not ctx.run.run_id.startswith(ASSET_TRIGGERED):
        return settled
    moved_at = datasets.read_head(ctx.storage, ctx.recipe.name).moved_at
    before = trained_by(ctx.storage, ctx.run, ctx.request, moved_at)
    if before:
        ctx.facts["nothing_to_do"] = True
    return replace(settled, trained_by=before)


def _waited_s(ctx: StepContext, now: datetime) -> float:
    """Seconds this run has been told to wait so far; what an earlier, cleared try of it waited does not count."""
    found = [one for one in RunFolder(ctx.storage, ctx.run).references() if one.step == "settle"]
    if not found:
        return 0.0
    told = float(found[-1].facts.get("wait_s", 0.0))
    late_s = (now - datetime.fromisoformat(found[-1].finished_at)).total_seconds() - told
    return float(found[-1].facts.get("waited_s", 0.0)) + told if told and late_s < _LATE_S else 0.0


_LATE_S = 60.0
"""A deferred task that comes back later than this was started anew."""

_heads: dict[str, Head] = {}
"""The head that a snapshot's key was made from, so that the step composes that one though the head may move on."""


def _world(_: Settings, storage: Storage, request: RunRequest) -> str:
    head = datasets.read_head(storage, request.recipe.name)
    _heads[request.recipe.name] = head
    return head.digest(request.as_of)


def _snapshot(ctx: StepContext) -> Snapshotted:
    from pipelines.steps.snapshot import snapshot

    name = ctx.recipe.name
    cache = ctx.settings.home / "cache"
    found = snapshot(ctx.storage, name, _heads[name], ctx.request.as_of, ctx.recipe.split, ctx.out, cache)
    ctx.facts.update(num_images=found.num_images, **found.split_counts)
    return found


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
        name="accept",
        wire=_accept,
        roots=("pipelines.steps.accept",),
        upstream=("assemble", "validate", "materialize"),
        effect=True,
    ),
    StepSpec(name="settle", wire=_settle, roots=("pipelines.steps.settle",), effect=True, first=True),
    StepSpec(
        name="snapshot",
        wire=_snapshot,
        roots=("pipelines.steps.snapshot",),
        sections=("split",),
        world=_world,
    ),
)
