"""`darkroom deployments`, over a real database."""

from __future__ import annotations

import json

import pytest
from serving_platform import ACTOR, VARIABLE, in_own_schema
from typer.testing import CliRunner

from pipelines.adapters import database
from pipelines.cli.app import app
from pipelines.core.deployments import Build, ServingSpec
from pipelines.settings import Settings

BUILD = Build(model="digits", version=3, package_digest="a" * 64, bento_digest="b" * 64, bento_key="bentos/x.tar")


@pytest.fixture
def url(postgres_settings: Settings, monkeypatch: pytest.MonkeyPatch) -> str:
    found = in_own_schema(postgres_settings)
    database.migrate(found)
    monkeypatch.setenv(VARIABLE, found)
    database.mark_live(found, database.request_deployment(found, BUILD, ServingSpec(), actor=ACTOR), actor=ACTOR)
    return found


def test_deployments_for_programs(url: str) -> None:
    done = CliRunner().invoke(app, ["deployments", "--json"], catch_exceptions=False)
    table = json.loads(done.stdout)
    assert [(one["build"]["version"], one["state"], one["kind"]) for one in table["deployments"]] == [
        (3, "live", "deploy")
    ]
    assert [one["actor"] for one in table["deployments"]] == [ACTOR]


def test_deployments_for_people(url: str) -> None:
    listed = CliRunner().invoke(app, ["deployments"], catch_exceptions=False).stdout
    assert "digits" in listed
    assert ACTOR in listed
