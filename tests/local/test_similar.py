"""What the process that finds similar images gets to know."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from pipelines.local import similar
from pipelines.settings import REPOSITORY, Settings


@pytest.fixture
def found(home_settings: Settings, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hidden")
    monkeypatch.setenv("SOME_PASSWORD", "hidden")
    return similar.environment(replace(home_settings, default_model="clothing"))


def test_it_knows_where_things_are_and_no_secret(found: dict[str, str], home_settings: Settings) -> None:
    assert "hidden" not in found.values()
    assert found["DARKROOM_VECTORS_URL_FILE"] == str(home_settings.secrets / "search-database-url")
    assert found["DARKROOM_RECIPES"].split(os.pathsep) == [
        str(REPOSITORY / "pipelines" / "recipes"),
        str(home_settings.home / "recipes"),
    ]
    assert (found["DARKROOM_DEFAULT_MODEL"], found["DARKROOM_CLUSTER"]) == ("clothing", "similar")


def test_the_store_s_credentials_only_where_it_asks_for_some(
    home_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hidden")
    found = similar.environment(replace(home_settings, store_uri="s3://bucket"))
    assert found["AWS_SECRET_ACCESS_KEY"] == "hidden"


def test_redis_is_not_searched_and_not_shown(home_settings: Settings) -> None:
    found = similar.environment(replace(home_settings, features_redis="host:6379,password=hidden"))
    assert found["DARKROOM_VECTORS_URL_FILE"] == ""
    assert not any("hidden" in value for value in found.values())
