"""Every path by every role through the gateway: it tells nobody more than a process does."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from front_door import Door, front_door, raw_answer
from homes import settings_under
from key_stores import EVERYBODY, KeyStore, check_endpoint, key_store
from serving_platform import ask

from bentos.classifier.http import table
from bentos.kit.front import Endpoint
from pipelines.core.model_package import ModelPackage
from pipelines.settings import Settings


@pytest.fixture(scope="module")
def store(postgres_settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> KeyStore:
    return key_store(postgres_settings, tmp_path_factory.mktemp("secrets"))


@pytest.fixture(scope="module")
def locked(
    bento: Path, package: ModelPackage, store: KeyStore, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Door]:
    settings = replace(settings_under(tmp_path_factory.mktemp("locked") / "home"), default_model="colours")
    with front_door(settings, bento, package, **store.variables) as found:
        yield found


@pytest.mark.parametrize("who", EVERYBODY)
@pytest.mark.parametrize("endpoint", table().endpoints, ids=lambda one: f"{one.method} {one.path}")
def test_every_route_by_every_role(locked: Door, store: KeyStore, endpoint: Endpoint, who: str) -> None:
    check_endpoint(locked.port, endpoint, who, store.header(who))


def test_without_a_key_no_model_is_named(locked: Door) -> None:
    paths = (
        *(
            "/",
            "/nowhere",
            "/v1",
            "/v2",
            "/v1/classify",
            "/v1/models",
            "/v1/models/",
            "/v2/models/",
            "/v1/openapi.json",
        ),
        *("/v1/models/other", "/v1/models/other/classify", "/v2/models/other/infer", "/livez", "/readyz", "/metrics"),
    )
    asked = [(method, path) for method in ("GET", "POST", "HEAD", "OPTIONS", "DELETE") for path in paths]

    def answer(one: tuple[str, str]) -> bytes:
        head = f"{one[0]} {one[1]} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        return raw_answer(locked.port, head.encode())

    with ThreadPoolExecutor(len(asked)) as clients:  # Envoy takes seconds to close
        found = dict(zip(asked, clients.map(answer, asked), strict=True))
    assert all(found.values())
    assert [one for one, answer in found.items() if b"colours" in answer] == []


def test_with_a_key_its_models_are_listed(locked: Door, store: KeyStore) -> None:
    for port in (locked.port, locked.served.port):
        status, found = ask(port, "/", headers=store.header("viewer"))
        assert (status, found["models"]) == (200, {"colours": "/v1/models/colours/classify"})
        assert found["default_model"] == "colours"
        status, found = ask(port, "/", headers=store.header("another model's"))
        assert (status, found["models"], found["default_model"]) == (200, {}, None)
    # What is deployed is the gateway's word, not the client's.
    claimed = {**store.header("viewer"), "x-darkroom-deployed": "mine", "x-darkroom-default": "mine"}
    assert set(ask(locked.port, "/", headers=claimed)[1]["models"]) == {"colours"}
