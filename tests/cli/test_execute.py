"""One step of one run: reuse by key, effects that always look, orphans that are swept."""

from __future__ import annotations

import errno
import os
import pwd
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from pipelines.cli.execute import TASK_MARK, execute, task_mark
from pipelines.cli.registry import StepContext, StepSpec
from pipelines.core.actors import airflow
from pipelines.core.errors import NotFound, UserError
from pipelines.core.recipe import Recipe, override
from pipelines.core.results import ResultStore
from pipelines.core.runs import RunId, RunRequest
from pipelines.settings import Settings

RUN = RunId(dag_id="demo", run_id="one")
OTHER = RunId(dag_id="demo", run_id="two")
REQUEST = RunRequest(recipe=Recipe(name="demo"))


@dataclass(frozen=True, kw_only=True)
class Number:
    number: int


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(
        home=tmp_path,
        store_uri=str(tmp_path / "store"),
        s3_endpoint_url=None,
        gateway_port=1,
        default_model="demo",
        celery_queue=None,
    )


def _spec(calls: list[str], **changes: object) -> StepSpec:
    def wire(context: StepContext) -> Number:
        calls.append(str(context.run))
        (context.out / "file.txt").write_text(str(context.recipe.training.epochs))
        return Number(number=context.recipe.training.epochs)

    fields: dict[str, object] = {
        "name": "count", "wire": wire, "roots": ("pipelines.core.errors",), "sections": ("training",), "first": True,
    }  # fmt: skip
    return StepSpec(**{**fields, **changes})  # type: ignore[arg-type]


def test_equal_work_is_reused_and_says_so(settings: Settings) -> None:
    calls: list[str] = []
    assert not execute(settings, _spec(calls), RUN, request=REQUEST).reused
    assert execute(settings, _spec(calls), OTHER, request=REQUEST).reused
    assert len(calls) == 1
    assert not execute(settings, _spec(calls), OTHER, request=REQUEST, force=True).reused


def test_a_step_knows_for_whom_it_acts(settings: Settings) -> None:
    actors: list[str] = []

    def wire(context: StepContext) -> Number:
        actors.append(context.actor)
        return Number(number=1)

    execute(settings, _spec([], wire=wire, effect=True), RUN, request=REQUEST)
    execute(settings, _spec([], wire=wire, effect=True), OTHER, request=REQUEST, actor=airflow(OTHER))
    user = pwd.getpwuid(os.getuid()).pw_name
    assert actors == [f"{user}@{socket.gethostname()}", "airflow:demo/two"]


@pytest.mark.parametrize(("key", "reused"), [("training.epochs", False), ("gate.margin", True)])
def test_only_the_steps_own_section_counts(settings: Settings, key: str, reused: bool) -> None:
    calls: list[str] = []
    execute(settings, _spec(calls), RUN, request=REQUEST)
    changed = RunRequest(recipe=override(REQUEST.recipe, {key: 0.02 if key == "gate.margin" else 3}))
    assert execute(settings, _spec(calls), OTHER, request=changed).reused is reused


def test_an_effect_never_skips(settings: Settings) -> None:
    calls: list[str] = []
    for _ in range(2):
        assert not execute(settings, _spec(calls, effect=True), RUN, request=REQUEST).reused
    assert len(calls) == 2


def test_equal_work_of_two_runs_is_done_once(settings: Settings) -> None:
    calls: list[str] = []
    slow = _spec(calls)

    def wire(context: StepContext) -> object:
        time.sleep(0.3)
        return slow.wire(context)

    with ThreadPoolExecutor() as pool:
        done = list(
            pool.map(lambda run: execute(settings, replace(slow, wire=wire), run, request=REQUEST), (RUN, OTHER))
        )
    assert len(calls) == 1
    assert sorted(one.reused for one in done) == [False, True]


def test_what_is_not_reusable_is_made_anew_and_replaced(settings: Settings) -> None:
    numbers = iter((1, 2, 3))
    spec = _spec([], wire=lambda _: Number(number=next(numbers)), reusable=lambda value: value["number"] != 1)
    assert execute(settings, spec, RUN, request=REQUEST).value == {"number": 1}
    assert execute(settings, spec, OTHER, request=REQUEST).value == {"number": 2}
    assert execute(settings, spec, OTHER, request=REQUEST).reused


def test_outside_state_is_part_of_the_key(settings: Settings) -> None:
    calls: list[str] = []
    world: Callable[[str], Callable[..., str]] = lambda text: lambda *_: text  # noqa: E731
    execute(settings, _spec(calls, world=world("a")), RUN, request=REQUEST)
    assert not execute(settings, _spec(calls, world=world("b")), OTHER, request=REQUEST).reused


def test_a_step_without_its_inputs_says_which_to_run(settings: Settings) -> None:
    execute(settings, _spec([]), RUN, request=REQUEST)
    later = _spec([], name="later", first=False, upstream=("missing",))
    with pytest.raises(NotFound, match="step missing has no result yet; run it before later"):
        execute(settings, later, RUN)


def test_a_failed_step_leaves_nothing_behind(settings: Settings) -> None:
    def fail(context: StepContext) -> Number:
        (context.out / "half").write_text("x")
        raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        execute(settings, _spec([], wire=fail), RUN, request=REQUEST)
    assert list((settings.home / "scratch").iterdir()) == []
    assert not (settings.home / "store" / "results").exists()


def test_what_a_retry_would_go_on_from_stays_until_the_result_is_published(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spent = tmp_path / "checkpoints"
    spent.mkdir()

    def wire(context: StepContext) -> Number:
        context.spent.append(spent)
        return Number(number=1)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(ResultStore, "publish", full)
        with pytest.raises(UserError, match="no space left"):
            execute(settings, _spec([], wire=wire), RUN, request=REQUEST)
    assert spent.is_dir()
    execute(settings, _spec([], wire=wire), RUN, request=REQUEST)
    assert not spent.exists()


def test_a_retry_ends_the_orphans_of_the_try_before(settings: Settings) -> None:
    mark = task_mark(RUN, "count", None)
    orphan = subprocess.Popen(
        [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, env={**os.environ, TASK_MARK: mark}
    )
    try:
        execute(settings, _spec([]), RUN, request=REQUEST)
        assert orphan.wait(timeout=10) == -9
    finally:
        orphan.kill()
