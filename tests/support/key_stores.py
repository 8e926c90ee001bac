"""A real key store with a key of each role, and what each may."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from example_packages import coloured
from serving_platform import ask, in_own_schema
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from bentos.kit.front import Endpoint
from pipelines.adapters import database
from pipelines.core.access import ROLES, Scope, new_key
from pipelines.settings import SERVING_ROLE, Settings

EVERYBODY = (*ROLES, "another model's", "nobody")
IMAGE = coloured("red", 1)


@dataclass(frozen=True, kw_only=True)
class KeyStore:
    """Where its database is, its keys, and what a serving process has to know of it."""

    url: str
    keys: Mapping[str, str]
    variables: Mapping[str, str]

    def header(self, who: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.keys[who]}"} if who in self.keys else {}

    def make(self, name: str, **grant: object) -> dict[str, str]:
        """The header of a new predictor's key."""
        key = new_key()
        given = database.Grant(name=name, role="predictor", **grant)  # type: ignore[arg-type]
        database.create_key(self.url, key, given, actor="test")
        return {"Authorization": f"Bearer {key}"}


def key_store(postgres_settings: Settings, folder: Path) -> KeyStore:
    """In a schema of its own; `folder` takes its secrets."""
    url = in_own_schema(postgres_settings)
    database.migrate(url)
    database.allow_serving(url, SERVING_ROLE)
    keys = {who: new_key() for who in (*ROLES, "another model's")}
    for who, key in keys.items():
        other = who not in ROLES
        grant = database.Grant(name=who, role="admin" if other else who, models=("other",) if other else ())
        database.create_key(url, key, grant, actor="test")
    (folder / "url").write_text(postgres_settings.serving_database_url + "?" + url.partition("?")[2] + "\n")
    (folder / "platform").write_text("the-platforms-own-key\n")
    variables = {
        "DARKROOM_AUTH": "required",
        "DARKROOM_KEYS_URL_FILE": str(folder / "url"),
        "DARKROOM_PLATFORM_KEY_FILE": str(folder / "platform"),
    }
    return KeyStore(url=url, keys=keys, variables=variables)


def expected(who: str, scope: Scope, *, any_model: bool = False) -> int:
    """401, 403, or 200 for whoever gets past the door."""
    if scope is Scope.PUBLIC:
        return 200
    if who == "nobody":
        return 401
    if who not in ROLES:
        return 200 if any_model else 403
    return 200 if scope in ROLES[who] else 403


def check_endpoint(port: int, endpoint: Endpoint, who: str, header: dict[str, str]) -> None:
    """Whether an endpoint lets in whom it should, and says to others why not."""
    path = endpoint.path.replace("{name}", "colours").replace("{version}", "7")
    if endpoint.socket is not None:
        found = handshake(port, path, header)
    else:
        found, answer = _asked(port, path, IMAGE if endpoint.method == "POST" else None, header)
        if found in (401, 403):
            assert answer["reason"] == {401: "unauthenticated", 403: "forbidden"}[found]
    wanted = expected(who, endpoint.scope, any_model=endpoint.any_model)
    if wanted == 200:
        assert found not in (401, 403)
        assert found < 500
    else:
        assert found == wanted


def handshake(port: int, path: str, header: dict[str, str]) -> int:
    try:
        with connect(f"ws://127.0.0.1:{port}{path}", additional_headers=header):
            return 101
    except InvalidStatus as refused:
        return refused.response.status_code


def _asked(port: int, path: str, body: bytes | None, header: dict[str, str]) -> tuple[int, dict[str, str]]:
    try:
        return ask(port, path, body, header)
    except ValueError:  # metrics are no JSON
        return 200, {}
