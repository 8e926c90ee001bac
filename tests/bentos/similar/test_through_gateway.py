"""Through a real Envoy, beside a real classifier: routes, and what happens while a part is away."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import pytest
from example_packages import coloured
from served_bento import Served
from serving_platform import ask, wait_until
from similar_service import Link, Searching, searching
from stored_images import Stored

from pipelines.adapters.gateway import Backend, Endpoint, Gateway, View, access_log, envoy_argv, write_initial
from pipelines.local import certificates
from pipelines.local.process import ManagedProcess, environment
from pipelines.settings import Settings

CLUSTER = "colours-v7-1"
CLASSIFY = "/v1/models/colours/classify"


@contextlib.contextmanager
def envoy(settings: Settings, served: Served, similar: int | None) -> Iterator[Gateway]:
    """In front of a classifier and, where there is one, the search."""
    certificates.ensure(settings)
    write_initial(settings)
    process = ManagedProcess("envoy", envoy_argv(settings), environment(settings), settings.home / "envoy.log")
    process.start()
    try:
        gateway = Gateway(settings)
        wait_until(gateway.ready)
        here = {CLUSTER: (Endpoint(port=served.port, grpc_port=served.grpc_port),)}
        gateway.apply(View(clusters=here, similar=similar))
        expected = {CLUSTER: {served.port, served.grpc_port}, "similar": {similar} - {None}}
        for cluster, ports in expected.items():
            wait_until(lambda cluster=cluster, ports=ports: gateway.healthy_ports(cluster) == ports)  # type: ignore[misc]
        backend = Backend(cluster=CLUSTER, version="7", weight=100)
        gateway.apply(View(clusters=here, routes={"colours": (backend,)}, similar=similar))
        yield gateway
    finally:
        process.stop(5)


@dataclass(frozen=True, kw_only=True)
class House:
    """Everything, and the link between the search and PostgreSQL."""

    settings: Settings
    search: Searching
    stored: Stored
    link: Link

    @property
    def port(self) -> int:
        return self.settings.gateway_port

    @property
    def image(self) -> bytes:
        return self.stored.files[0].read_bytes()

    def similar(self) -> tuple[int, dict]:  # type: ignore[type-arg]
        return ask(self.port, "/v1/similar", self.image)


@pytest.fixture
def house(stored: Stored, served: Served, home_settings: Settings, tmp_path: Path) -> Iterator[House]:
    parts = urlsplit(stored.url_file.read_text().strip())
    link = Link(target_port=parts.port or 0)
    url = tmp_path / "url"
    user = parts.netloc.rpartition("@")[0]
    url.write_text(urlunsplit(parts._replace(netloc=f"{user}@127.0.0.1:{link.port}")))
    settings = replace(home_settings, default_model=stored.house.name)
    link.up()
    variables = {"DARKROOM_VECTORS_URL_FILE": str(url)}
    with (
        searching(tmp_path, stored.house.storage.uri, stored.recipes, stored.house.name, **variables) as search,
        envoy(settings, served, search.port),
    ):
        yield House(settings=settings, search=search, stored=stored, link=link)
    link.down()


def test_the_routes(house: House) -> None:
    by_name = f"/v1/models/{house.stored.house.name}/similar?top_k=2"
    for path in ("/v1/similar?top_k=2", by_name):
        status, answer = ask(house.port, path, house.image, {"X-Request-ID": "mine"})
        assert (status, answer["request_id"], len(answer["neighbours"])) == (200, "mine", 2)
    wait_until(lambda: '"cluster":"similar"' in access_log(house.settings).read_text())
    # A model that is deployed but has no stored images, one that is neither, and one that is both.
    assert ask(house.port, "/v1/models/colours/similar", house.image)[1]["reason"] == "not_found"
    assert ask(house.port, "/v1/models/nobody/similar", house.image)[1]["reason"] == "not_found"
    assert ask(house.port, "/v1/models/nobody/classify", house.image)[1]["reason"] == "gateway"
    assert ask(house.port, CLASSIFY, coloured("red", 1))[0] == 200
    assert ask(house.port, "/v1/similar/readyz") == (200, {"ready": True})
    assert "/v1/similar" in ask(house.port, "/v1/similar/openapi.json")[1]["paths"]
    index = ask(house.port, "/")[1]
    assert (index["similar_openapi"], "/v1/similar" in index["similar"]) == ("/v1/similar/openapi.json", True)
    status, problem = ask(house.port, "/v1/similar", headers={"content-length": str(2**30)})
    assert (status, problem["title"]) == (413, "Body too large")


def test_while_postgresql_is_away(house: House) -> None:
    assert house.similar()[0] == 200
    house.link.down()
    connection = HTTPConnection("127.0.0.1", house.port, timeout=30)
    connection.request("POST", "/v1/similar", house.image)
    response = connection.getresponse()
    assert (response.status, response.getheader("retry-after")) == (503, "2")
    assert b"features_unavailable" in response.read()
    connection.close()
    assert ask(house.port, CLASSIFY, coloured("red", 2))[0] == 200
    assert ask(house.port, "/v1/similar/readyz")[0] == 200, "it waits for its store, and is not started again"
    house.link.up()
    wait_until(lambda: house.similar()[0] == 200)
    # One that takes connections and says nothing is no better, and ends within its time.
    house.link.hangs = True
    began = time.monotonic()
    status, problem = house.similar()
    assert (status, problem["reason"]) == (503, "features_unavailable")
    assert time.monotonic() - began < 15
    assert ask(house.port, CLASSIFY, coloured("red", 3))[0] == 200
    house.link.down()
    house.link.hangs = False
    house.link.up()
    wait_until(lambda: house.similar()[0] == 200)


def test_while_the_object_store_is_away(house: House) -> None:
    """Labels are those of the last head that was read."""
    assert house.similar()[0] == 200
    root = Path(house.stored.house.storage.uri)
    moved = root.rename(root.with_name("moved-away"))
    answers = []

    def noticed() -> bool:
        answers.append(house.similar())
        return "labels are not up to date" in house.search.log.read_text()

    try:
        wait_until(noticed)
        answers.append(house.similar())
    finally:
        moved.rename(root)
    assert {status for status, _ in answers} == {200}
    assert all(answer["neighbours"][0]["label"] for _, answer in answers)


def test_a_platform_without_the_search_says_so(served: Served, home_settings: Settings) -> None:
    with envoy(home_settings, served, None):
        for path in ("/v1/similar", "/v1/models/colours/similar"):
            status, problem = ask(home_settings.gateway_port, path, b"x")
            assert (status, "without the search" in problem["detail"]) == (503, True)
        assert ask(home_settings.gateway_port, CLASSIFY, coloured("red", 4))[0] == 200
