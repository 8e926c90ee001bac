"""`darkroom deployments`, over a real database."""

from __future__ import annotations

import json

import psycopg
import pytest
from serving_platform import VARIABLE, in_own_schema
from typer.testing import CliRunner

from pipelines.adapters import database
from pipelines.cli.app import app
from pipelines.core.deployments import Build, ServingSpec
from pipelines.core.errors import IntegrityError
from pipelines.settings import Settings

BUILD = Build(model="digits", version=3, package_digest="a" * 64, bento_digest="b" * 64, bento_key="bentos/x.tar")


@pytest.fixture
def url(postgres_settings: Settings, monkeypatch: pytest.MonkeyPatch) -> str:
    found = in_own_schema(postgres_settings)
    database.migrate(found)
    monkeypatch.setenv(VARIABLE, found)
    database.mark_live(found, database.request_deployment(found, BUILD, ServingSpec()))
    return found


def test_deployments_for_programs(url: str) -> None:
    done = CliRunner().invoke(app, ["deployments", "--json"], catch_exceptions=False)
    table = json.loads(done.stdout)
    assert [(one["build"]["version"], one["state"], one["kind"]) for one in table["deployments"]] == [
        (3, "live", "deploy")
    ]
    assert [one["event"] for one in table["history"]] == ["requested", "deploy_live"]
    assert table["history_rows_verified"] == 2


def test_deployments_for_people(url: str) -> None:
    assert "digits" in CliRunner().invoke(app, ["deployments"], catch_exceptions=False).stdout
    history = CliRunner().invoke(app, ["deployments", "--history"], catch_exceptions=False).stdout
    assert "2 rows, every hash verified" in history
    assert "deploy_live" in history


def test_an_edited_history_is_told(url: str) -> None:
    with psycopg.connect(url) as connection:
        connection.execute(b"ALTER TABLE history DISABLE TRIGGER USER")
        connection.execute(b"UPDATE history SET model = 'other' WHERE seq = 1")
    with pytest.raises(IntegrityError, match="row 1"):
        CliRunner().invoke(app, ["deployments"], catch_exceptions=False)
