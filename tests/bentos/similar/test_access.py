"""Every route by every role, and what is counted, with a real key store."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import psycopg
import pytest
from serving_platform import ask, in_own_schema
from similar_service import Searching, searching
from stored_images import Stored

from bentos.kit.front import Endpoint
from bentos.similar.http import table
from pipelines.adapters import database
from pipelines.core.access import ROLES, new_key
from pipelines.settings import SERVING_ROLE, Settings

EVERYBODY = (*ROLES, "another model's", "nobody")


@dataclass(frozen=True, kw_only=True)
class Guarded:
    """A process, its key store and a key of each role."""

    search: Searching
    url: str
    keys: Mapping[str, str]
    image: bytes

    def header(self, who: str) -> dict[str, str]:
        # `ask` sends another test's key where it is given none.
        return {"Authorization": f"Bearer {self.keys.get(who, '')}"}


@pytest.fixture(scope="module")
def guarded(stored: Stored, postgres_settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    url = in_own_schema(postgres_settings)
    database.migrate(url)
    database.allow_serving(url, SERVING_ROLE)
    keys = {who: new_key() for who in (*ROLES, "another model's", "twice")}
    for who, key in keys.items():
        role = who if who in ROLES else "predictor"
        models = ("other",) if who == "another model's" else ()
        per_minute = 12 if who == "twice" else None  # a bucket of two
        grant = database.Grant(name=who, role=role, models=models, per_minute=per_minute)
        database.create_key(url, key, grant, actor="test")
    folder = tmp_path_factory.mktemp("secrets")
    (folder / "url").write_text(postgres_settings.serving_database_url + "?" + url.partition("?")[2] + "\n")
    variables = {
        "DARKROOM_AUTH": "required",
        "DARKROOM_KEYS_URL_FILE": str(folder / "url"),
        "DARKROOM_VECTORS_URL_FILE": str(stored.url_file),
    }
    with searching(stored.work, stored.house.storage.uri, stored.recipes, stored.house.name, **variables) as search:
        yield Guarded(search=search, url=url, keys=keys, image=stored.files[0].read_bytes())


@pytest.mark.parametrize("who", EVERYBODY)
@pytest.mark.parametrize("endpoint", table().endpoints, ids=lambda one: f"{one.method} {one.path}")
def test_every_route_by_every_role(guarded: Guarded, stored: Stored, endpoint: Endpoint, who: str) -> None:
    path = endpoint.path.replace("{name}", stored.house.name)
    try:
        body = guarded.image if endpoint.method == "POST" else None
        status, answer = ask(guarded.search.port, path, body, guarded.header(who))
    except ValueError:  # metrics are no JSON
        status, answer = 200, {}
    if who == "nobody":
        assert (status, answer["reason"]) == (401, "unauthenticated")
    elif endpoint.any_model or (who in ROLES and endpoint.scope in ROLES[who]):
        assert status == 200
    else:
        assert (status, answer["reason"]) == (403, "forbidden")


def test_what_is_not_listed_is_refused(guarded: Guarded) -> None:
    for path in ("/", "/v1/models", "/docs.json"):
        assert ask(guarded.search.port, path, None, guarded.header("nobody"))[0] == 401
        assert ask(guarded.search.port, path, None, guarded.header("admin"))[0] == 404


def test_an_image_counts(guarded: Guarded) -> None:
    ask_as_twice = lambda: ask(guarded.search.port, "/v1/similar", guarded.image, guarded.header("twice"))  # noqa: E731
    assert [ask_as_twice()[0] for _ in range(3)] == [200, 200, 429]
    assert ask_as_twice()[1]["reason"] == "too_many_requests"


def test_the_role_may_search_and_nothing_else(stored: Stored, postgres_settings: Settings) -> None:
    table_name = stored.house.online.table(stored.house.embedder.view)
    with psycopg.connect(postgres_settings.search_database_url, autocommit=True) as connection:
        assert connection.execute(f'SELECT count(vector_value) FROM "{table_name}"').fetchone() == (16,)
        for statement in (
            f'SELECT value FROM "{table_name}"',
            f'DELETE FROM "{table_name}"',
            f"UPDATE \"{table_name}\" SET feature_name = 'x'",
            "SELECT * FROM projects",
            "CREATE TABLE mine (number int)",
            "CREATE TEMP TABLE mine (number int)",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(statement)
    with pytest.raises(psycopg.OperationalError, match="permission denied"):
        psycopg.connect(postgres_settings.search_database_url.removesuffix("feast") + "darkroom")
