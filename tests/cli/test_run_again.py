"""`darkroom run` called again: the store tells what was made, this platform what serves."""

from __future__ import annotations

import time
from collections.abc import Sequence

import pytest
from serving_platform import ACTOR, VARIABLE, in_own_schema

from pipelines.adapters import database
from pipelines.cli.chain import graph, summary
from pipelines.cli.chain.base import Chain
from pipelines.cli.chain.probe import Answer
from pipelines.cli.chain.report import Reporter
from pipelines.cli.chain.summary import Outcome
from pipelines.cli.execute import execute, storage_of
from pipelines.cli.past_runs import PastRun
from pipelines.cli.registry import StepContext, StepSpec
from pipelines.core.deployments import Build, ServingSpec
from pipelines.core.recipe import Recipe
from pipelines.core.results import ResultStore
from pipelines.core.runs import RunId, RunRequest
from pipelines.core.values import Deployed, Evaluated, Interval, Snapshotted
from pipelines.settings import Settings

REQUEST = RunRequest(recipe=Recipe(name="demo"))
DEPLOYED = Deployed(deployment_id=2, model="demo", version=2, package_digest="2" * 64, url="")


def _wire(context: StepContext) -> Deployed:
    return DEPLOYED


DEPLOY = StepSpec(name="deploy", wire=_wire, roots=("pipelines.core.errors",), first=True, effect=True)


@pytest.fixture
def url(home_settings: Settings, postgres_settings: Settings, monkeypatch: pytest.MonkeyPatch) -> str:
    found = in_own_schema(postgres_settings)
    database.migrate(found)
    monkeypatch.setenv(VARIABLE, found)
    return found


@pytest.fixture
def chain(home_settings: Settings, url: str, monkeypatch: pytest.MonkeyPatch) -> Chain:
    """Of one step, whose run has finished and would come out the same again."""

    def only(steps: Sequence[str]) -> list[StepSpec]:
        return [DEPLOY]

    monkeypatch.setattr(graph, "specs", only)
    storage = storage_of(home_settings)
    made = Chain(home_settings, REQUEST.recipe, Reporter(storage, ResultStore(storage, home_settings.home / "cache")))
    run = RunId(dag_id=made.train_dag, run_id="manual__2026-01-01T00:00:00+00:00")
    execute(home_settings, DEPLOY, run, request=REQUEST, started=time.time())
    return made


def _serve(url: str, version: int, kind: str = "deploy") -> None:
    digest = str(version) * 64
    build = Build(model="demo", version=version, package_digest=digest, bento_digest=digest, bento_key="b.tar")
    assert database.mark_live(
        url, database.request_deployment(url, build, ServingSpec(), kind=kind, actor=ACTOR), actor=ACTOR
    )


def test_a_run_that_another_database_has_seen_is_run_again(chain: Chain, url: str) -> None:
    """The database was lost, or a second machine shares the store: nothing serves, whatever the store says."""
    assert chain.fresh_training() is None
    _serve(url, 1)
    assert chain.fresh_training() is None  # another machine's version 2 is not this one's
    _serve(url, 2)
    assert chain.fresh_training() is not None


def test_what_was_rolled_back_is_not_deployed_again(chain: Chain, url: str) -> None:
    _serve(url, 1)
    _serve(url, 2)
    _serve(url, 1, kind="rollback")
    assert chain.fresh_training() is not None


def _outcome(*versions: int) -> Outcome:
    answers = [
        Answer(
            image_id="i", label="a", predicted="a", probability=0.9, model_version=str(version),
            package_digest=str(version) * 64, milliseconds=1.0,
        )
        for version in versions
    ]  # fmt: skip
    return Outcome(
        name="demo",
        ingests=[],
        training=PastRun(run=RunId(dag_id="train", run_id="r"), request=REQUEST, references=[]),
        evaluated=Evaluated(package_digest="2" * 64, accuracy=Interval(value=0.9, low=0.8, high=0.95), num_images=100),
        deployed=DEPLOYED,
        snapshot=Snapshotted(
            snapshot_id="5" * 64, dataset="demo", class_names=("a", "b"), num_images=300, split_counts={}
        ),
        findings=[],
        notes=[],
        answers=answers,
        curl="curl",
        steps=[],
        overheads=[],
        total_s=1.0,
        up_s=0.5,
        memory_bytes=1,
    )


def test_the_summary_names_what_the_gateway_answered_with() -> None:
    where = {"endpoint": "e", "mlflow": "m", "data_docs": "d"}
    usual = summary.render(_outcome(2), where)
    assert "demo version 2 serves  (package 222222222222)" in usual
    assert "trained " not in usual
    back = _outcome(2, 1)
    told = summary.render(back, where)
    assert "demo version 1 serves  (package 111111111111)" in told
    assert "trained    version 2" in told
    assert "`darkroom promote 2 --model demo`" in told
    table = summary.as_json(back, where)
    assert (table["version"], table["package_digest"], table["trained_version"]) == (1, "1" * 64, 2)
