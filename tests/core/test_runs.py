"""Run folders keep what was asked and what was made."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.core.errors import NotFound
from pipelines.core.recipe import Recipe, override
from pipelines.core.runs import Reference, RunFolder, RunId, RunRequest
from pipelines.core.storage import LocalStorage


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    run = RunId(dag_id="ingest_images", run_id="scheduled__2024-01-01T00:00:00+00:00")
    return RunFolder(LocalStorage(tmp_path), run)


def test_a_run_id_survives_its_text() -> None:
    run = RunId(dag_id="a/b", run_id="manual__2026-01-01T00:00:00+00:00")
    assert RunId.parse(str(run)) == run
    with pytest.raises(NotFound):
        RunId.parse("no-slash")


def test_a_run_that_starts_again_takes_the_new_request_and_forgets_old_shards(folder: RunFolder) -> None:
    with pytest.raises(NotFound):
        folder.request()
    folder.begin(RunRequest(recipe=Recipe(name="x1"), interval="static"))
    folder.record(_reference("ingest", 7, "2026-01-01T00:00:00"))
    later = RunRequest(recipe=override(Recipe(name="x1"), {"training.epochs": 3}), interval="static")
    assert folder.begin(later) == later == folder.request()
    assert folder.references() == []


def test_references_come_in_order_of_their_start(folder: RunFolder) -> None:
    folder.begin(RunRequest(recipe=Recipe(name="x1")))
    for position, (step, shard) in enumerate([("plan", None), ("ingest", 1), ("ingest", 0)]):
        folder.record(_reference(step, shard, f"2026-01-01T00:00:0{position}"))
    assert [(one.step, one.shard) for one in folder.references()] == [("plan", None), ("ingest", 1), ("ingest", 0)]


def _reference(step: str, shard: int | None, started_at: str) -> Reference:
    return Reference(
        step=step, shard=shard, key="k", digest="d", reused=False, started_at=started_at,
        finished_at="2026-01-01T00:01:00", function_s=1.0, process_s=2.0,
    )  # fmt: skip
