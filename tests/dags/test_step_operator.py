"""A task's command dies with it, its orphans are ended, a retry waits for what still runs, and exit codes mean what
they say. Every test drives the real operator and the real command, in processes of their own.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipelines.cli.chain.digits import ensure_digits
from pipelines.cli.execute import TASK_MARK, task_mark
from pipelines.core.command import said
from pipelines.core.processes import marked
from pipelines.core.runs import RunId
from pipelines.settings import REPOSITORY, Settings

RUN = RunId(dag_id="ingest_images", run_id="manual__2026-01-01T00:00:00+00:00")
MARK = task_mark(RUN, "plan", None)

_TASK = """
import json, signal, sys
from types import SimpleNamespace
from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowSkipException, TaskDeferred
from dags._step import StepOperator
operator = StepOperator(task_id="plan", step="plan", arguments=json.loads(sys.argv[1]), fan_out=True)
signal.signal(signal.SIGTERM, lambda *_: operator.on_kill())  # as Airflow's task runner does
context = {"dag_run": SimpleNamespace(dag_id="ingest_images", run_id="manual__2026-01-01T00:00:00+00:00")}
try:
    print(json.dumps(["ok", operator.execute(context)]))
except AirflowException as error:
    print(json.dumps([type(error).__name__, str(error)]))
"""


@pytest.fixture
def home(home_settings: Settings) -> Settings:
    """A home with the digits."""
    ensure_digits(home_settings.home)
    return home_settings


def _task(home: Settings, *arguments: str) -> subprocess.Popen[str]:
    given = arguments or ("--recipe", "digits", "--interval", "2024-01-01")
    environment = {**os.environ, "AIRFLOW_HOME": str(home.home / "airflow"), "DARKROOM_HOME": str(home.home)}
    return subprocess.Popen(
        [sys.executable, "-c", _TASK, json.dumps(given)],
        env=environment,
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def _result(task: subprocess.Popen[str]) -> list[object]:
    output, _ = task.communicate(timeout=60)
    found: list[object] = json.loads(output.splitlines()[-1])
    return found


@contextmanager
def _step_is_held(home: Settings) -> Iterator[None]:
    """The lock of the step is taken, as by an earlier try that still runs: whoever comes now waits."""
    folder = home.home / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / hashlib.sha256(MARK.encode()).hexdigest()[:32]).open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _commands() -> list[int]:
    return list(marked(TASK_MARK, MARK))


def _wait(condition: Callable[[], bool], timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def test_the_command_of_a_killed_task_dies_and_a_retry_waits_for_its_turn(home: Settings) -> None:
    with _step_is_held(home):
        task = _task(home)
        _wait(lambda: bool(_commands()))
        task.kill()
        task.wait()
        _wait(lambda: not _commands(), timeout_s=5)
        retry = _task(home)
        _wait(lambda: bool(_commands()))
        time.sleep(0.5)  # it had every chance to pass the lock
        assert retry.poll() is None
    assert _result(retry) == ["ok", [0]]


def test_the_command_knows_for_whom_it_acts(home: Settings) -> None:
    with _step_is_held(home):
        task = _task(home)
        _wait(lambda: bool(_commands()))
        (command,) = _commands()
        _wait(lambda: b"--actor" in Path(f"/proc/{command}/cmdline").read_bytes())
        arguments = Path(f"/proc/{command}/cmdline").read_bytes().decode().split("\0")
        assert arguments[arguments.index("--actor") + 1] == f"airflow:{RUN}"
        task.kill()
        task.wait()
        _wait(lambda: not _commands(), timeout_s=5)


def test_a_task_that_is_told_to_end_takes_its_command_along(home: Settings) -> None:
    with _step_is_held(home):
        task = _task(home)
        _wait(lambda: bool(_commands()))
        task.send_signal(signal.SIGTERM)
        kind, text = _result(task)
        assert kind == "AirflowException"  # which Airflow tries again
        assert "killed by signal 15" in str(text)
        assert not _commands()


def test_orphans_of_a_crash_are_ended_before_the_step_runs_again(home: Settings) -> None:
    orphan = subprocess.Popen(["sleep", "600"], env={**os.environ, TASK_MARK: MARK}, start_new_session=True)
    other = subprocess.Popen(["sleep", "600"], env={**os.environ, TASK_MARK: f"{MARK}-not"}, start_new_session=True)
    try:
        assert _result(_task(home)) == ["ok", [0]]
        assert orphan.wait(timeout=5) == -signal.SIGKILL
        assert other.poll() is None
    finally:
        for process in (orphan, other):
            process.kill()
            process.wait()


def test_what_a_person_must_mend_is_not_tried_again(home: Settings) -> None:
    kind, text = _result(_task(home, "--recipe", "no-such", "--interval", "static"))
    assert kind == "AirflowFailException"
    assert "(exit 2)" in str(text)
    assert "no such recipe" in str(text)


def test_a_refusal_is_worded_for_gates_and_deployments_alike() -> None:
    """Both exit with 1, and neither is tried again."""
    code = (
        "from dags._step import StepOperator\n"
        "from airflow.sdk.exceptions import AirflowFailException\n"
        "try: StepOperator(task_id='deploy', step='deploy')._fail(1, ['darkroom: golden image 7 is wrong'])\n"
        "except AirflowFailException as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    told = done.stdout.splitlines()[-1]
    assert "step deploy: refused, what served before still serves (exit 1): " in told
    assert "golden image 7 is wrong" in told
    assert "gate" not in told


def test_other_failures_are_tried_again(home: Settings) -> None:
    (home.home / "store").write_text("a file where the object store should be")
    kind, text = _result(_task(home))
    assert kind == "AirflowException"
    assert "step plan: exit 70" in str(text)


_DECISIONS = """
import json
from airflow.sdk.exceptions import AirflowSkipException, TaskDeferred
from dags._step import StepOperator, changes
class Told(StepOperator):
    def _run(self, context):
        return {"value": context, "facts": context.pop("facts", {})}
def result(value, **options):
    try:
        return Told(task_id="x", step="x", **options).execute(value)
    except (AirflowSkipException, TaskDeferred) as end:
        return [type(end).__name__, type(getattr(end, "trigger", None)).__name__]
print(json.dumps({
    "unchanged": result({"changed": False}, skip_unchanged=True),
    "changed": result({"changed": True}, skip_unchanged=True),
    "quiet": result({"wait_s": 0.0}),
    "busy": result({"wait_s": 3.0}),
    "empty": result({"num_shards": 1, "facts": {"nothing_to_do": True}}, fan_out=True),
    "trained": result({"wait_s": 0.0, "trained_by": "train_classifier/r1"}),
    "shards": result({"num_shards": 3}, fan_out=True),
    "form": changes({"training.epochs": 3, "as_of": "2024-01-01"}),
    "none": changes(None),
}))
"""


def test_decisions(home: Settings) -> None:
    environment = {**os.environ, "AIRFLOW_HOME": str(home.home / "airflow")}
    command = [sys.executable, "-c", _DECISIONS]
    done = subprocess.run(command, env=environment, cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert json.loads(done.stdout.splitlines()[-1]) == {
        # An event only where the head moved; a cool-down defers, it never drops.
        "unchanged": ["AirflowSkipException", "NoneType"],
        "changed": None,
        "quiet": None,
        "busy": ["TaskDeferred", "DateTimeTrigger"],
        "empty": ["AirflowSkipException", "NoneType"],
        "trained": ["AirflowSkipException", "NoneType"],
        "shards": [0, 1, 2],
        "form": '{"training.epochs": 3}',
        "none": "{}",
    }, done.stderr


def test_the_environment_of_a_step_holds_nothing_of_airflow(home: Settings, tmp_path: Path) -> None:
    program = "import json; from dags._step import _environment; print(json.dumps(_environment('m')))"
    environment = {
        **os.environ,
        "AIRFLOW_HOME": str(tmp_path),
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": "postgresql://airflow:password@127.0.0.1/x",
    }
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, cwd=REPOSITORY, capture_output=True, text=True, timeout=60
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert found[TASK_MARK] == "m"
    assert found["DARKROOM_HOME"] == str(home.home)
    assert not [name for name in found if "AIRFLOW" in name]


def test_a_refusal_of_several_lines_is_told_whole() -> None:
    tail = ["loading", "darkroom: dataset x is parked", "  expectation: a", "    observed 3, threshold 2"]
    assert said(tail) == "dataset x is parked\n  expectation: a\n    observed 3, threshold 2"
    assert said(["1", "2", "3", "4"]) == "2\n3\n4"
