"""What deploy, promote and rollback share, over a real database; only the reconciler's part is played here."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
from serving_platform import ACTOR, VARIABLE, in_own_schema

from pipelines.adapters import database
from pipelines.cli.requests import DeploymentRequests
from pipelines.core.deployments import Build, Deployment, ServingSpec
from pipelines.core.errors import DeploymentFailed, UserError
from pipelines.core.ports import ModelVersion
from pipelines.core.rollouts import roll_back, serve
from pipelines.core.values import Deployed
from pipelines.settings import Settings

GATEWAY = "http://127.0.0.1:8080"


class Champions:
    """The registry's one method that rollouts call."""

    def __init__(self) -> None:
        self.promoted: list[tuple[str, int]] = []

    def promote(self, model: str, version: int) -> ModelVersion:
        self.promoted.append((model, version))
        return None  # type: ignore[return-value]


class Requests(DeploymentRequests):
    """Without a gateway: that clients get the answers is played too."""

    confirmed: list[Build]

    def confirm(self, build: Build, timeout_s: float) -> None:
        self.confirmed.append(build)


@pytest.fixture
def requests(url: str, postgres_settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Requests:
    monkeypatch.setenv(VARIABLE, url)
    made = Requests(postgres_settings, ACTOR)
    made.confirmed = []
    return made


@pytest.fixture
def url(postgres_settings: Settings) -> str:
    found = in_own_schema(postgres_settings)
    database.migrate(found)
    return found


@contextmanager
def reconciled(url: str, outcome: Callable[[Deployment], None]) -> Iterator[None]:
    stop = threading.Event()

    def work() -> None:
        while not stop.wait(0.02):
            for state in database.desired_state(url):
                if state.desired is not None:
                    outcome(state.desired)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def build(version: int) -> Build:
    digest = f"{version:064d}"
    return Build(model="digits", version=version, package_digest=digest, bento_digest=digest, bento_key=f"b{version}")


def bring_up(requests: Requests, registry: Champions, version: int) -> Deployed:
    return serve(build(version), ServingSpec(), requests, registry, gateway_url=GATEWAY, kind="promote")  # type: ignore[arg-type]


def test_the_champion_moves_after_the_traffic(url: str, requests: Requests) -> None:
    registry = Champions()

    def live(deployment: Deployment) -> None:
        assert registry.promoted == []
        database.mark_live(url, deployment, actor=ACTOR)

    with reconciled(url, live):
        deployed = bring_up(requests, registry, 4)
    assert registry.promoted == [("digits", 4)]
    assert requests.confirmed == [build(4)]
    assert (deployed.version, deployed.url) == (4, f"{GATEWAY}/v1/models/digits/classify")


def test_a_failure_says_why_and_what_still_serves(url: str, requests: Requests) -> None:
    registry = Champions()
    with reconciled(url, lambda one: database.mark_live(url, one, actor=ACTOR)):
        bring_up(requests, registry, 1)
    with (
        reconciled(url, lambda one: database.mark_failed(url, one, "golden image 007.png is wrong", actor=ACTOR)),
        pytest.raises(DeploymentFailed, match=r"version 2 .*golden image 007.png is wrong; version 1 still serves"),
    ):
        bring_up(requests, registry, 2)
    assert registry.promoted == [("digits", 1)]


def test_rolling_back_brings_up_the_very_build_again(url: str, requests: Requests) -> None:
    registry = Champions()
    with reconciled(url, lambda one: database.mark_live(url, one, actor=ACTOR)):
        with pytest.raises(UserError, match="no earlier deployment"):
            roll_back("digits", requests, registry, gateway_url=GATEWAY)  # type: ignore[arg-type]
        for version in (1, 2):
            bring_up(requests, registry, version)
        back = roll_back("digits", requests, registry, gateway_url=GATEWAY)  # type: ignore[arg-type]
    assert back.version == 1
    current = database.current(url, "digits")
    assert current is not None
    assert (current.kind, current.build) == ("rollback", replace(build(1)))
    assert registry.promoted[-1] == ("digits", 1)
