"""`darkroom keys`, over a real database."""

from __future__ import annotations

import json

import pytest
from click import unstyle
from serving_platform import VARIABLE, in_own_schema
from typer.testing import CliRunner

from pipelines.adapters import database
from pipelines.cli.app import app
from pipelines.core.access import digest_of, well_formed
from pipelines.core.errors import NotFound, UserError
from pipelines.settings import Settings


@pytest.fixture
def url(postgres_settings: Settings, monkeypatch: pytest.MonkeyPatch) -> str:
    found = in_own_schema(postgres_settings)
    database.migrate(found)
    monkeypatch.setenv(VARIABLE, found)
    return found


def keys(*arguments: str) -> str:
    done = CliRunner().invoke(app, ["keys", *arguments], catch_exceptions=False)
    assert done.exit_code == 0
    return done.stdout


def test_a_key_is_shown_once_and_only_its_digest_is_kept(url: str) -> None:
    key = keys("create", "shop", "--model", "digits", "--per-minute", "600").strip()
    assert well_formed(key)
    (made,) = database.api_keys(url)
    assert (made.name, made.role, made.models, made.per_minute) == ("shop", "predictor", ("digits",), 600)
    assert digest_of(key).startswith(made.id)
    assert made.expires_at is not None
    assert (made.expires_at - made.created_at).days in (89, 90)
    listed = keys("list")
    assert "shop" in listed
    assert "600 a minute" in listed
    assert key not in listed
    assert key not in json.dumps([one.detail for one in database.history(url)])


def test_the_help_says_over_what_a_limit_counts() -> None:
    said = " ".join(unstyle(keys("create", "--help")).replace("│", " ").split())
    assert "Most images a minute, of each deployment by itself" in said
    assert "with Redis, what is left of the whole" in said
    assert "Most images a day (UTC), counted over everything together" in said


def test_a_revoked_key_is_listed_and_its_name_is_free_again(url: str) -> None:
    keys("create", "shop", "--expires", "never")
    assert "is revoked" in keys("revoke", "shop")
    again = json.loads(keys("create", "shop", "--expires", "12h", "--json"))
    states = {one["id"]: one["state"] for one in json.loads(keys("list", "--json"))}
    assert states.pop(again["id"]) == "active"
    assert list(states.values()) == ["revoked"]
    events = [(one.event, one.detail["name"]) for one in database.history(url)]
    assert events == [("key_created", "shop"), ("key_revoked", "shop"), ("key_created", "shop")]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["Shop!"], "NAME"),
        (["shop", "--role", "root"], "viewer, predictor, operator, admin"),
        (["shop", "--expires", "soon"], "12h or 90d"),
        (["shop", "--expires", "0d"], "12h or 90d"),
    ],
)
def test_what_is_wrong_is_named(url: str, arguments: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        keys("create", *arguments)
    assert database.api_keys(url) == []


def test_two_active_keys_of_a_name_are_refused_and_so_is_revoking_nothing(url: str) -> None:
    keys("create", "shop")
    with pytest.raises(UserError, match="revoke it"):
        keys("create", "shop")
    with pytest.raises(NotFound, match="keys list"):
        keys("revoke", "nobody")
