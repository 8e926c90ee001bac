"""A deployment of two processes behind one port: who gets what."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.client import HTTPConnection

import grpc
import pytest
from example_packages import coloured
from http2_frames import DATA, END_STREAM, HEADERS, Connection, frame, request_of
from request_bodies import INFER, infer_call
from serving_platform import (
    AUTHORIZED,
    SPEC,
    VARIABLE,
    Load,
    deploy,
    in_own_schema,
    make_build,
    serving,
    wait_until,
)

from pipelines import settings as settings_module
from pipelines.local.deployments import Reconciler
from pipelines.local.ports import free_port
from pipelines.settings import Settings

pytestmark = pytest.mark.heavy

NUM_CALLS = 60
PATH = "/v1/models/colours/classify"
LEAST = 10
"""Of 60 calls for each process: at random fewer than 10 go to one of two less than once in ten million runs."""


@pytest.fixture(scope="module")
def settings(postgres_settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, in_own_schema(postgres_settings))
        patch.setenv("DARKROOM_HOME", str(tmp_path_factory.mktemp("serving")))
        patch.setenv("DARKROOM_ENVOY_ADMIN_PORT", str(free_port()))
        patch.setenv("DARKROOM_GATEWAY_PORT", str(free_port()))
        patch.setenv("DARKROOM_DEFAULT_MODEL", "colours")
        yield settings_module.load()


@pytest.fixture(scope="module")
def two(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reconciler]:
    """Both processes serve."""
    build = make_build(settings, tmp_path_factory.mktemp("builds"), model="colours", version=1)
    with serving(settings) as reconciler:
        assert deploy(settings, build, replace(SPEC, workers=2)).state == "live"
        yield reconciler


def by_grpc(port: int) -> None:
    """All calls on one channel."""
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        infer, authorization = channel.unary_unary(INFER), (("authorization", AUTHORIZED["Authorization"]),)
        for number in range(NUM_CALLS):
            infer(infer_call(coloured("red", number)), metadata=authorization, timeout=30)


def by_http2(port: int) -> None:
    """All requests as streams of one connection."""
    with Connection(port) as connection:
        for number in range(NUM_CALLS):
            image, stream = coloured("green", number), 2 * number + 1
            length = {"content-length": str(len(image)), "authorization": AUTHORIZED["Authorization"]}
            connection.open(stream, request_of(PATH, **length))
            connection.send(frame(DATA, END_STREAM, stream, image))
            while connection.seen[HEADERS] <= number:
                connection.read()


@pytest.mark.parametrize(("ask", "route"), [(by_grpc, "oip-infer-grpc"), (by_http2, "classify")])
def test_the_requests_of_one_connection_spread_over_the_processes(
    two: Reconciler, settings: Settings, ask: Callable[[int], None], route: str
) -> None:
    ports = [one.port for one in two.processes() if one.state == "ready"]
    assert len(ports) == 2
    before = [answered(port, route) for port in ports]
    ask(settings.gateway_port)
    taken = [answered(port, route) - number for port, number in zip(ports, before, strict=True)]
    assert sum(taken) == NUM_CALLS
    assert min(taken) >= LEAST


def answered(port: int | None, route: str) -> int:
    """Requests that a process has answered with 200."""
    connection = HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request("GET", "/metrics", headers=AUTHORIZED)
        text = connection.getresponse().read().decode()
    finally:
        connection.close()
    found = re.search(rf'darkroom_requests_total{{route="{route}",status="200"}} (\S+)', text)
    return round(float(found[1])) if found else 0


def test_prometheus_is_told_where_each_process_is(two: Reconciler, settings: Settings) -> None:
    def scraped() -> list[int | None]:
        (group,) = json.loads((settings.home / "prometheus" / "targets.json").read_text())
        assert (group["labels"]["model"], group["labels"]["version"]) == ("colours", "1")
        return sorted(int(target.removeprefix("127.0.0.1:")) for target in group["targets"])

    victim, _ = before = [one for one in two.processes() if one.state == "ready"]
    assert scraped() == sorted(one.port or 0 for one in before)
    assert all(answered(port, "classify") >= 0 for port in scraped())
    os.kill(victim.pid or 0, signal.SIGKILL)
    wait_until(lambda: victim.port not in scraped())
    wait_until(lambda: len(scraped()) == 2)  # back, on another port
    assert scraped() == sorted(one.port or 0 for one in two.processes())


def test_while_one_is_killed_the_other_takes_its_requests(two: Reconciler, settings: Settings) -> None:
    ready = [one for one in two.processes() if one.state == "ready"]
    with Load(settings.gateway_port, PATH).running(threads=4) as load:
        os.kill(next(one.pid for one in ready if one.name.endswith("-1")) or 0, signal.SIGKILL)
        time.sleep(1)
    assert load.failures == []
    wait_until(lambda: all(one.state == "ready" for one in two.processes()))
