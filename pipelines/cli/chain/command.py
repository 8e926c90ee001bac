"""`darkroom run` and `darkroom backfill`: platform, data, chain, proof, summary."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from datetime import date

from pipelines.adapters.orchestrator import Orchestrator
from pipelines.cli import preflight
from pipelines.cli.chain import probe, summary
from pipelines.cli.chain.base import Chain
from pipelines.cli.chain.data_recipe import ensure_recipe
from pipelines.cli.chain.digits import ensure_digits
from pipelines.cli.chain.direct import DirectChain
from pipelines.cli.chain.freshness import result_of
from pipelines.cli.chain.overhead import Overhead, overhead
from pipelines.cli.chain.report import Reporter
from pipelines.cli.chain.summary import Outcome
from pipelines.cli.chain.through_airflow import AirflowChain
from pipelines.cli.execute import storage_of
from pipelines.cli.past_runs import PastRun
from pipelines.core import recipe as recipes
from pipelines.core.datasets import STATIC, read_head
from pipelines.core.recipe import Recipe
from pipelines.core.results import ResultStore
from pipelines.core.runs import RunFolder, RunId
from pipelines.core.sources import list_intervals
from pipelines.core.values import Deployed, Evaluated, Snapshotted
from pipelines.local import platform, state
from pipelines.settings import Settings

DIGITS = "digits"


def recipe_for(settings: Settings, data: str | None, name: str | None) -> Recipe:
    """The recipe of the user's data, a known one by name, or the bundled digits (whose files are written if needed)."""
    if data is not None:
        return ensure_recipe(settings, data, name)
    recipe = recipes.get(name or settings.default_model, *settings.recipe_folders)
    if recipe.name == DIGITS:
        ensure_digits(settings.home)
    return recipe


def run_chain(settings: Settings, recipe: Recipe, *, direct: bool) -> tuple[Outcome, Mapping[str, str]]:
    """Everything that is left to do, and the summary of how it stands. Raises what a step failed with, and RecipeError
    before the first where the recipe names what is not there.
    """
    began = time.monotonic()
    preflight.check(storage_of(settings), recipe, ingest=True, training=True)
    reporter = Reporter(storage_of(settings), ResultStore(storage_of(settings), settings.home / "cache"))
    intervals = known_intervals(settings, recipe)
    start_platform(settings, reporter, direct=direct)
    up_s = time.monotonic() - began
    chain = _chain(settings, recipe, reporter, direct=direct)
    chain.ingest(intervals)
    training = chain.train()
    outcome = _outcome(settings, chain, chain.fresh_ingests(intervals), training)
    outcome = replace(outcome, total_s=time.monotonic() - began, up_s=up_s)
    outcome = replace(outcome, memory_bytes=_memory_at_rest(settings) if outcome.steps else _memory(settings))
    return outcome, summary.places(settings, recipe.name, with_airflow=not direct)


def known_intervals(settings: Settings, recipe: Recipe) -> list[str]:
    """Those of the source, and the days that the dataset still holds though the source has no images of them now."""
    found = list_intervals(recipe.source, home=settings.home, endpoint_url=settings.s3_endpoint_url)
    if not recipe.source.dated:
        return found
    days = {day for day in read_head(storage_of(settings), recipe.name).parts if day != STATIC}
    return sorted(days | set(found), key=lambda day: (day == STATIC, day))


def run_backfill(settings: Settings, recipe: Recipe, first: date, last: date) -> list[date]:
    """Past days through Airflow; returns the days that ran."""
    preflight.check(storage_of(settings), recipe, ingest=True, training=False)
    reporter = Reporter(storage_of(settings), ResultStore(storage_of(settings), settings.home / "cache"))
    start_platform(settings, reporter, direct=False)
    chain = AirflowChain(settings, recipe, reporter, orchestrator(settings))
    chain.wait_until_known()
    return chain.backfill(first, last)


def orchestrator(settings: Settings) -> Orchestrator:
    """A client of the local Airflow."""
    return Orchestrator(f"http://127.0.0.1:{settings.port('airflow')}", "admin", settings.secret("airflow-admin"))


def _chain(settings: Settings, recipe: Recipe, reporter: Reporter, *, direct: bool) -> AirflowChain | DirectChain:
    if direct:
        return DirectChain(settings, recipe, reporter)
    chain = AirflowChain(settings, recipe, reporter, orchestrator(settings))
    chain.wait_until_known()
    return chain


def start_platform(settings: Settings, reporter: Reporter, *, direct: bool) -> None:
    """The platform, whole or without Airflow; where it is up with more than is needed, it stays so."""
    without: tuple[str, ...] = ("airflow",) if direct else ()
    found = state.read(settings)
    if direct and found is not None and state.keeper_pid(settings) is not None:
        without = found.without
    reporter.say("platform: starting what is not up")
    started = platform.up(settings, without=without)
    reporter.say("platform: ready" + (" (it was up)" if started.already else ""))


def _outcome(settings: Settings, chain: Chain, ingests: list[PastRun], training: PastRun) -> Outcome:
    storage = storage_of(settings)
    results = ResultStore(storage, settings.home / "cache")
    snapshot = result_of(results, training, "snapshot")
    images = probe.held_out(storage, snapshot)
    name = chain.recipe.name
    example = probe.example_file(settings, name, images[0])
    return Outcome(
        name=name,
        ingests=ingests,
        training=training,
        evaluated=result_of(results, training, "evaluate").load(Evaluated),
        deployed=result_of(results, training, "deploy").load(Deployed),
        snapshot=snapshot.load(Snapshotted),
        findings=summary.findings_of(results, ingests),
        notes=summary.notes_of(results, ingests),
        answers=probe.classify(settings, name, images),
        curl=probe.curl_line(settings, name, example),
        steps=chain.reporter.reports,
        overheads=_overheads(settings, chain),
        total_s=0.0,
        up_s=0.0,
        memory_bytes=0,
    )


def _overheads(settings: Settings, chain: Chain) -> list[Overhead]:
    """Of every run that was followed to its end."""
    if not isinstance(chain, AirflowChain):
        return []
    storage = storage_of(settings)
    found: list[Overhead] = []
    for run in chain.follower.followed:
        references = RunFolder(storage, RunId(dag_id=run.dag_id, run_id=run.run_id)).references()
        one = overhead(run, chain.orchestrator.tasks(run), references)
        if one is not None:
            found.append(one)
    return found


def _memory(settings: Settings) -> int:
    return sum(memory for _, memory in platform.processes(settings))


def _memory_at_rest(settings: Settings) -> int:
    """After the last task's processes have ended: the least of a few seconds."""
    least = _memory(settings)
    for _ in range(4):
        time.sleep(1.0)
        least = min(least, _memory(settings))
    return least
