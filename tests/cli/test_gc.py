"""`darkroom gc` asks the real registry and the real deployments what must stay."""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest
from serving_platform import ACTOR, in_own_schema
from typer.testing import CliRunner

from pipelines.adapters import database
from pipelines.cli.app import app
from pipelines.core.deployments import Build, ServingSpec
from pipelines.core.storage import LocalStorage
from pipelines.settings import Settings

OLD = time.time() - 40 * 86_400


def build(number: int) -> Build:
    return Build(
        model="photos",
        version=number,
        package_digest=str(number) * 64,
        bento_digest=str(number) * 64,
        bento_key=f"bentos/{number}.tar",
    )


def gc(*arguments: str) -> dict[str, dict[str, dict[str, int]]]:
    done = CliRunner().invoke(app, ["gc", "--older-than", "30", "--json", *arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    found: dict[str, dict[str, dict[str, int]]] = json.loads(done.output)
    return found


@pytest.fixture
def storage(postgres_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LocalStorage:
    """A store of its own, with a database that knows four deployments of which the last two can serve."""
    url = in_own_schema(postgres_settings)
    settings = replace(postgres_settings, store_uri=str(tmp_path / "store"), home=tmp_path / "home")
    monkeypatch.setenv("DARKROOM_DATABASE_URL_DARKROOM", url)
    monkeypatch.setenv("DARKROOM_DATABASE_URL_MLFLOW", postgres_settings.database_url("mlflow"))
    monkeypatch.setattr("pipelines.settings.load", lambda: settings)
    database.migrate(url)
    for number in (1, 2, 3):
        assert database.mark_live(
            url, database.request_deployment(url, build(number), ServingSpec(), actor=ACTOR), actor=ACTOR
        )
    with database.connect(url) as connection:
        long_ago = "now() - interval '50 days'"
        connection.execute(
            f"UPDATE deployments SET requested_at = {long_ago}, live_at = {long_ago},"  # type: ignore[arg-type]
            f" ended_at = CASE WHEN ended_at IS NULL THEN NULL ELSE {long_ago} END"
        )
    storage = LocalStorage(tmp_path / "store")
    for number in (1, 2, 3, 4):
        storage.write(build(number).bento_key, b"bento")
        digest = build(number).package_digest
        storage.write(f"packages/{digest}/package.json", json.dumps({"lineage": {"snapshot_id": ""}}).encode())
    for entry in storage.list():
        os.utime(storage.locate(entry.key), (OLD, OLD))
    return storage


def test_what_serves_and_what_a_rollback_needs_stays(storage: LocalStorage) -> None:
    assert gc("--dry-run")["freed"]["bentos"]["num_objects"] == 2
    assert storage.exists("bentos/1.tar")
    freed = gc()["freed"]
    assert {kind: found["num_objects"] for kind, found in freed.items()} == {"bentos": 2, "packages": 2}
    assert [entry.key for entry in storage.list("bentos/")] == ["bentos/2.tar", "bentos/3.tar"]
    assert gc()["freed"] == {}


def test_leftovers_of_killed_processes_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DARKROOM_HOME", str(tmp_path))
    paths = [tmp_path / "store" / ".partial" / "1", tmp_path / "scratch" / "train-1" / "x"]
    paths += [tmp_path / "cache" / "archives" / "a.tar", tmp_path / "cache" / "s3" / "b" / "c"]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"12345")
        for one in (path, path.parent):
            os.utime(one, (OLD, OLD))
    young = tmp_path / "scratch" / "train-2"
    young.mkdir()
    assert gc("--dry-run")["freed"]["cache"]["num_objects"] == 2
    freed = gc()["freed"]
    assert {kind: found["num_objects"] for kind, found in freed.items()} == {"cache": 2, "scratch": 2}
    assert not any(path.exists() for path in paths)
    assert young.exists()


def test_a_file_that_vanishes_while_it_is_looked_at_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DARKROOM_HOME", str(tmp_path))
    gone = tmp_path / "store" / ".partial" / "written-meanwhile"
    monkeypatch.setattr(LocalStorage, "leftovers", lambda _: iter([gone]))
    assert gc()["freed"] == {}
