"""Would a finished run do anything new? Which run has seen this data? Is more data on its way?"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import pytest

from pipelines.cli.chain.announcement import announced
from pipelines.cli.chain.freshness import first_stale_step
from pipelines.cli.execute import execute, storage_of
from pipelines.cli.past_runs import PastRun, past_runs, trained_by
from pipelines.cli.registry import StepContext, StepSpec
from pipelines.core.datasets import active_runs
from pipelines.core.recipe import Recipe, override
from pipelines.core.runs import RunId, RunRequest
from pipelines.settings import Settings
from pipelines.steps.settle import settle

RUN = RunId(dag_id="demo", run_id="manual__2026-01-01T00:00:00+00:00")
REQUEST = RunRequest(recipe=Recipe(name="demo"))


@dataclass(frozen=True, kw_only=True)
class Made:
    number: int


def _wire(context: StepContext) -> Made:
    return Made(number=context.recipe.training.epochs)


FIRST = StepSpec(
    name="snapshot", wire=_wire, roots=("pipelines.core.errors",), sections=("source",), first=True, effect=True
)
TRAIN = StepSpec(
    name="train", wire=_wire, roots=("pipelines.core.errors",), sections=("training",), upstream=("snapshot",)
)
DEPLOY = StepSpec(
    name="deploy", wire=_wire, roots=("pipelines.core.errors",), sections=("rollout",), upstream=("train",), effect=True
)
CHAIN = (FIRST, TRAIN, DEPLOY)


def _run(
    settings: Settings, run: RunId = RUN, request: RunRequest = REQUEST, chain: tuple[StepSpec, ...] = CHAIN
) -> None:
    for spec in chain:
        execute(settings, spec, run, request=request if spec.first else None, started=time.time())


def _past(settings: Settings) -> PastRun:
    (found,) = past_runs(storage_of(settings), "demo")
    return found


def test_a_run_of_a_recipe_that_is_refused_by_now_hides_no_other(home_settings: Settings) -> None:
    _run(home_settings)
    _run(home_settings, replace(RUN, run_id="manual__2025-01-01T00:00:00+00:00"))
    storage = storage_of(home_settings)
    key = next(one.key for one in storage.list("runs/demo/manual__2025") if one.key.endswith("run.json"))
    storage.write(key, storage.read(key).replace(b"0 3 * * 0", b"0 3 31 2 *"))
    assert _past(home_settings).run == RUN


def test_a_finished_run_stands_while_nothing_changes(home_settings: Settings) -> None:
    _run(home_settings)
    assert first_stale_step(home_settings, CHAIN, _past(home_settings), REQUEST, world=True) is None


@pytest.mark.parametrize(
    ("key", "value", "step"),
    [
        ("source.uri", "/other", "snapshot"),
        ("training.epochs", 3, "train"),
        ("rollout.workers", 2, "deploy"),
        ("gate.margin", 0.02, None),  # no step of this chain reads it
    ],
)
def test_the_step_that_reads_what_changed_is_stale(
    home_settings: Settings, key: str, value: object, step: str | None
) -> None:
    _run(home_settings)
    asked = RunRequest(recipe=override(REQUEST.recipe, {key: value}))
    assert first_stale_step(home_settings, CHAIN, _past(home_settings), asked, world=True) == step


def test_an_unfinished_run_is_stale_where_it_stopped(home_settings: Settings) -> None:
    _run(home_settings, chain=CHAIN[:2])
    assert first_stale_step(home_settings, CHAIN, _past(home_settings), REQUEST, world=True) == "deploy"


def test_what_the_world_said_then_counts_only_where_asked(home_settings: Settings) -> None:
    looked = replace(TRAIN, world=lambda *_: "then")
    _run(home_settings, chain=(FIRST, looked))
    chain = (FIRST, replace(TRAIN, world=lambda *_: "now"))
    past = _past(home_settings)
    assert first_stale_step(home_settings, chain, past, REQUEST, world=True) == "train"
    assert first_stale_step(home_settings, chain, past, REQUEST, world=False) is None
    edited = RunRequest(recipe=override(REQUEST.recipe, {"training.epochs": 3}))
    assert first_stale_step(home_settings, chain, past, edited, world=False) == "train"


def test_a_run_that_has_seen_the_data_is_found_and_others_are_not(home_settings: Settings) -> None:
    storage = storage_of(home_settings)
    event = RunId(dag_id="demo", run_id="asset_triggered__2026-01-02")
    before = datetime.now(UTC).isoformat()
    _run(home_settings)
    _run(home_settings, event, chain=CHAIN[:1])
    assert trained_by(storage, event, REQUEST, before) == str(RUN)
    assert trained_by(storage, event, REQUEST, datetime.now(UTC).isoformat()) == ""  # the head moved after it
    edited = RunRequest(recipe=override(REQUEST.recipe, {"training.epochs": 3}))
    assert trained_by(storage, event, edited, before) == ""
    assert trained_by(storage, RUN, REQUEST, before) == ""  # not itself, and the other has not deployed


def test_training_waits_while_a_command_has_more_to_ingest(home_settings: Settings) -> None:
    storage = storage_of(home_settings)
    with announced(storage, "demo"):
        assert settle(storage, "demo", 1.0, datetime.now(UTC)).wait_s > 0
        ((_, age_s),) = active_runs(storage, "demo", datetime.now(UTC))
        assert age_s > 500  # a command that is killed is waited for less than a minute, not ten
    assert settle(storage, "demo", 1.0, datetime.now(UTC)).wait_s == 0
