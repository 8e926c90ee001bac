"""The DAG files: they load fast and light, draw the chains that the command line knows, and survive a broken recipe."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipelines.cli.chain import graph
from pipelines.settings import REPOSITORY

_READ = """
import json, sys, time, warnings
from datetime import UTC, datetime
from unittest import mock
from airflow.dag_processing.dagbag import DagBag
warnings.simplefilter("ignore")
before = set(sys.modules)
began = time.perf_counter()
bag = DagBag(sys.argv[1])
seconds = time.perf_counter() - began
modules = sorted(set(sys.modules) - before)
from airflow.sdk.definitions.mappedoperator import MappedOperator
from airflow.serialization.serialized_objects import DagSerialization
from airflow.timetables import trigger
from airflow.timetables.base import TimeRestriction

def first_run(dag, now):
    "As the scheduler finds it, from what the dag processor has written down."
    timetable = DagSerialization.from_dict(DagSerialization.to_dict(dag)).timetable
    with mock.patch.object(trigger, "utcnow", lambda: now):
        found = timetable.next_dagrun_info(
            last_automated_data_interval=None, restriction=TimeRestriction(None, None, False)
        )
    return found.run_after.isoformat()

sunday = datetime(2026, 11, 29, 3, 31, tzinfo=UTC)
dags = {}
for dag_id, dag in bag.dags.items():
    tasks = {
        task.task_id: {
            "upstream": sorted(task.upstream_task_ids), "retries": task.retries, "pool": task.pool, "doc": task.doc_md,
            "mapped": isinstance(task, MappedOperator), "outlets": [asset.name for asset in task.outlets],
        }
        for task in dag.tasks
    }
    dags[dag_id] = {
        "tasks": tasks, "order": [task.task_id for task in dag.topological_sort()], "tags": sorted(dag.tags),
        "doc": dag.doc_md, "max_active_runs": dag.max_active_runs, "catchup": dag.catchup,
        "timetable": type(dag.timetable).__name__,
        "params": {key: dag.params.get_param(key).schema for key in dag.params},
    }
weekly = first_run(bag.dags["train_classifier"], sunday)
print(json.dumps({"dags": dags, "errors": bag.import_errors, "seconds": seconds, "modules": modules, "weekly": weekly}))
"""


def _load(home: Path) -> dict[str, Any]:
    environment = {
        **os.environ,
        "AIRFLOW_HOME": str(home / "airflow"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__UNIT_TEST_MODE": "False",
        "AIRFLOW__LOGGING__LOGGING_LEVEL": "ERROR",
        "DARKROOM_HOME": str(home),
    }
    command = [sys.executable, "-c", _READ, str(REPOSITORY / "dags")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What Airflow's DagBag makes of our files, with three recipes of a user, two of them broken."""
    home = tmp_path_factory.mktemp("home")
    (home / "recipes").mkdir()
    (home / "recipes" / "street-signs.toml").write_text('[source]\nuri = "/nowhere"\n[schedule]\ncool_down_s = 60\n')
    (home / "recipes" / "broken.toml").write_text("[training]\nepoch = 3\n")
    (home / "recipes" / "never.toml").write_text('[source]\nuri = "/nowhere"\n[schedule]\ntrain_cron = "0 0 30 2 *"\n')
    return _load(home)


def test_a_broken_recipe_is_named_and_takes_nothing_down(loaded: dict[str, Any]) -> None:
    assert len(loaded["errors"]) == 1
    (text,) = loaded["errors"].values()
    assert "broken.toml" in text
    assert "training.epoch: unknown key" in text
    assert "never.toml: schedule.train_cron = '0 0 30 2 *'" in text
    assert set(loaded["dags"]) == {
        "ingest_images",
        "train_classifier",
        "ingest_images__street-signs",
        "train_classifier__street-signs",
    }


def test_files_load_fast_and_light(loaded: dict[str, Any]) -> None:
    assert loaded["seconds"] < 5
    heavy = {"torch", "torchvision", "mlflow", "feast", "great_expectations", "numpy", "pandas", "pyarrow", "PIL"}
    assert not heavy & {name.split(".")[0] for name in loaded["modules"]}


@pytest.mark.parametrize("name", ["", "__street-signs"])
def test_the_graphs_are_the_chains(loaded: dict[str, Any], name: str) -> None:
    ingest, train = loaded["dags"][f"ingest_images{name}"], loaded["dags"][f"train_classifier{name}"]
    # A topological order exists (no cycles), and it is the chain's.
    assert tuple(ingest["order"]) == graph.INGEST
    assert tuple(train["order"]) == graph.TRAIN
    for dag in (ingest, train):
        for earlier, later in zip(dag["order"], dag["order"][1:], strict=False):
            assert dag["tasks"][later]["upstream"] == [earlier]
    assert [task for task, facts in ingest["tasks"].items() if facts["mapped"]] == ["ingest"]


def test_every_dag_says_what_it_is(loaded: dict[str, Any]) -> None:
    for dag_id, dag in loaded["dags"].items():
        recipe = dag_id.partition("__")[2] or "digits"
        assert {"darkroom", recipe} <= set(dag["tags"])
        assert recipe in dag["doc"]
        assert dag["catchup"] is False
        for task, facts in dag["tasks"].items():
            assert facts["retries"] == 2, (dag_id, task)
            assert facts["doc"]


def test_schedules(loaded: dict[str, Any]) -> None:
    dags = loaded["dags"]
    assert dags["ingest_images"]["timetable"] == "CronDataIntervalTimetable"
    assert dags["ingest_images__street-signs"]["timetable"] == "NullTimetable"  # undated: when asked
    for dag_id in ("train_classifier", "train_classifier__street-signs"):
        assert dags[dag_id]["timetable"] == "AssetOrTimeSchedule"
        assert dags[dag_id]["max_active_runs"] == 1
        assert dags[dag_id]["tasks"]["train"]["pool"] == "gpu"
    assert dags["ingest_images"]["tasks"]["accept"]["outlets"] == ["snapshot-digits"]


def test_the_first_weekly_training_is_the_next_one_even_just_after_the_last(loaded: dict[str, Any]) -> None:
    """On a Sunday at 03:31: what would have run at 03:00 had there been anything is not made up for."""
    assert loaded["weekly"] == "2026-12-06T03:00:00+00:00"


def test_the_training_form_is_typed(loaded: dict[str, Any]) -> None:
    params = loaded["dags"]["train_classifier"]["params"]
    assert params["training.epochs"]["type"] == "integer"
    assert params["training.epochs"]["minimum"] == 1
    assert "resnet18" in params["model.backbone"]["enum"]
    assert params["as_of"]["type"] == ["null", "string"]


def test_many_recipes_load_in_time_too(tmp_path: Path) -> None:
    (tmp_path / "recipes").mkdir()
    for number in range(20):
        (tmp_path / "recipes" / f"set-{number}.toml").write_text('[source]\nuri = "/nowhere"\n')
    found = _load(tmp_path)
    assert len(found["dags"]) == 42
    assert found["seconds"] < 5
