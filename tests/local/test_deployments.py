"""Deployments on one machine, with real bentos, a real Envoy and a real PostgreSQL."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from http.client import HTTPConnection
from pathlib import Path

import grpc
import pytest
import serving_platform
from example_packages import coloured
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from oip_client import ask_with_triton
from otlp_collector import collecting
from serving_platform import (
    ACTOR,
    AUTHORIZED,
    SPEC,
    VARIABLE,
    Load,
    ask,
    deploy,
    in_own_schema,
    make_build,
    serving,
    wait_until,
)
from websockets.sync.client import connect

from pipelines import settings as settings_module
from pipelines.adapters import database
from pipelines.adapters.gateway import wait_until_answers
from pipelines.core.actors import supervisor
from pipelines.core.deployments import Build
from pipelines.core.errors import PlatformError
from pipelines.local.deployments import Reconciler
from pipelines.local.ports import free_port
from pipelines.settings import Settings

pytestmark = pytest.mark.heavy


@pytest.fixture(scope="module")
def settings(postgres_settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """A home, a gateway and a database schema of this module's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, in_own_schema(postgres_settings))
        home = tmp_path_factory.mktemp("serving")
        patch.setenv("DARKROOM_ENVOY_ADMIN_PORT", str(free_port()))
        patch.setenv("DARKROOM_HOME", str(home))
        patch.setenv("DARKROOM_GATEWAY_PORT", str(free_port()))
        patch.setenv("DARKROOM_DEFAULT_MODEL", "colours")
        yield settings_module.load()


@pytest.fixture(scope="module")
def builds(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Build]:
    folder = tmp_path_factory.mktemp("builds")
    good = {version: make_build(settings, folder, model="colours", version=version) for version in (1, 2)}
    bad = {3: "answers", 4: "file"}
    spoiled = {
        version: make_build(settings, folder, model="colours", version=version, spoil=how)
        for version, how in bad.items()
    }
    return {**good, **spoiled}


@pytest.fixture(scope="module")
def reconciler(settings: Settings) -> Iterator[Reconciler]:
    with serving(settings) as running:
        yield running


def served_version(settings: Settings) -> str | None:
    status, body = ask(settings.gateway_port, "/v1/models/colours")
    return body["model_version"] if status == 200 else None


def test_before_the_first_deployment_the_gateway_says_so(reconciler: Reconciler, settings: Settings) -> None:
    wait_until(lambda: ask(settings.gateway_port, "/")[0] == 503)
    status, problem = ask(settings.gateway_port, "/v1/classify", coloured("red"))
    assert (status, problem["status"], problem["detail"]) == (503, 503, "the default model is not deployed yet")


def test_a_deployment_serves_by_name_and_by_default(
    reconciler: Reconciler, settings: Settings, builds: dict[int, Build]
) -> None:
    assert deploy(settings, builds[1]).state == "live"
    for path in ("/v1/classify?top_k=1", "/v1/models/colours/classify?top_k=1"):
        status, answer = ask(settings.gateway_port, path, coloured("green", 7), {"X-Request-ID": "mine"})
        assert status == 200
        assert [one["class_name"] for one in answer["predictions"]] == ["green"]
        assert answer["request_id"] == "mine"
        assert answer["package_digest"] == builds[1].package_digest
    assert ask(settings.gateway_port, "/readyz")[0] == 200


def raw_ask(port: int, path: str, body: bytes, content_type: str) -> bytes:
    connection = HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request("POST", path, body, {"Content-Type": content_type, **AUTHORIZED})
        return connection.getresponse().read()
    finally:
        connection.close()


def form_of(image: bytes) -> tuple[bytes, str]:
    head = b'--edge\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
    return head + image + b"\r\n--edge--\r\n", "multipart/form-data; boundary=edge"


def test_every_transport_gives_the_same_answer_on_one_port(
    reconciler: Reconciler, settings: Settings, builds: dict[int, Build], tmp_path: Path
) -> None:
    """Computed once and then from memory; tests/bentos/test_transports.py has each compute it."""
    port, images = settings.gateway_port, [coloured("green", 8)]
    _, by_http = ask(port, "/v1/models/colours/classify", images[0])
    expected = {one["label"]: one["probability"] for one in by_http["predictions"]}
    with connect(f"ws://127.0.0.1:{port}/v1/models/colours/stream", additional_headers=AUTHORIZED) as stream:
        stream.send(images[0])
        by_stream = json.loads(stream.recv(timeout=20))
    lines = raw_ask(port, "/v1/classify/batch", *form_of(images[0]))
    assert by_stream["predictions"] == by_http["predictions"]
    assert json.loads(lines)["predictions"] == by_http["predictions"]
    found = ask_with_triton(
        images,
        http_port=port,
        grpc_port=port,
        model="colours",
        version="1",
        folder=tmp_path,
        authorization=AUTHORIZED["Authorization"],
    )
    assert len(found) == 6
    for name, answer in found.items():
        ((*probabilities,),) = answer["probabilities"]
        assert dict(enumerate(probabilities)) == expected, name
    _, embedded = ask(port, "/v1/embed", images[0])
    assert [embedded["embedding"]] == found["grpc"]["embedding"]


def test_standard_health_and_reflection_answer_at_the_gateways_port(
    reconciler: Reconciler, settings: Settings, builds: dict[int, Build]
) -> None:
    """Anybody may watch, through the gateway too; what services there are is for whoever may read models."""
    with grpc.insecure_channel(f"127.0.0.1:{settings.gateway_port}") as channel:
        health = health_pb2_grpc.HealthStub(channel)
        watched = health.Watch(health_pb2.HealthCheckRequest(service="colours"), timeout=20)
        assert next(watched).status == health_pb2.HealthCheckResponse.SERVING
        watched.cancel()
        assert (
            health.Check(health_pb2.HealthCheckRequest(), timeout=20).status == health_pb2.HealthCheckResponse.SERVING
        )
        ask_reflection = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo
        asked = reflection_pb2.ServerReflectionRequest(list_services="")
        key = [("authorization", AUTHORIZED["Authorization"])]
        (answer,) = ask_reflection(iter([asked]), timeout=20, metadata=key)
        assert "inference.GRPCInferenceService" in {one.name for one in answer.list_services_response.service}
        with pytest.raises(grpc.RpcError) as caught:
            next(ask_reflection(iter([asked]), timeout=20))
        assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED


def test_asking_again_for_what_is_live_changes_nothing(
    reconciler: Reconciler, settings: Settings, builds: dict[int, Build]
) -> None:
    before = database.deployments(settings.database_url("darkroom"), "colours")
    assert deploy(settings, builds[1]) == before[0]
    assert database.deployments(settings.database_url("darkroom"), "colours") == before


def test_a_deployment_that_fails_its_proof_changes_nothing(
    reconciler: Reconciler, settings: Settings, builds: dict[int, Build]
) -> None:
    with Load(settings.gateway_port, "/v1/classify").running() as load:
        failed = deploy(settings, builds[3])
    assert failed.state == "failed"
    assert "golden image" in failed.reason
    assert load.failures == []
    assert set(load.versions) == {"1"}
    assert database.current(settings.database_url("darkroom"), "colours").build == builds[1]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "num_deployments", [3, pytest.param(10, marks=pytest.mark.full)], ids=lambda count: f"{count}-in-a-row"
)
def test_no_request_is_lost(
    reconciler: Reconciler, settings: Settings, builds: dict[int, Build], num_deployments: int
) -> None:
    assert deploy(settings, builds[1]).state == "live"  # something serves before the load begins
    with Load(settings.gateway_port, "/v1/models/colours/classify").running(threads=4) as load:
        for number in range(num_deployments):
            assert deploy(settings, builds[2 - number % 2]).state == "live"
    assert load.failures == []
    assert set(load.versions) == {"1", "2"}
    assert load.num_answers > 50 * num_deployments


def test_a_killed_process_is_back_soon(reconciler: Reconciler, settings: Settings) -> None:
    (process,) = (one for one in reconciler.processes() if one.state == "ready")
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    wait_until(lambda: any(one.restarts == 1 and one.state == "ready" for one in reconciler.processes()))
    wait_until(lambda: served_version(settings) is not None)


@pytest.mark.parametrize("count", [50, pytest.param(500, marks=pytest.mark.full)])
def test_slow_bodies_are_ended_and_others_do_not_notice(reconciler: Reconciler, settings: Settings, count: int) -> None:
    head = b"POST /v1/classify HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n"
    began = time.monotonic()
    slow = [socket.create_connection(("127.0.0.1", settings.gateway_port), timeout=1) for _ in range(count)]
    try:
        for one in slow:
            one.sendall(head)
        open_sockets = list(slow)
        while open_sockets and time.monotonic() - began < 20:
            assert ask(settings.gateway_port, "/v1/classify", coloured("red"))[0] == 200
            time.sleep(0.5)
            open_sockets = [one for one in open_sockets if _drips(one)]
        assert not open_sockets
        assert time.monotonic() - began < 16
    finally:
        for one in slow:
            one.close()


def _drips(connection: socket.socket) -> bool:
    """Send one byte more; False where the other side has given up."""
    try:
        connection.setblocking(False)
        try:
            if connection.recv(4096):
                return False
        except BlockingIOError:
            pass
        else:
            return False
        connection.send(b"x")
    except OSError:
        return False
    return True


def test_a_process_that_cannot_start_says_why(
    reconciler: Reconciler, settings: Settings, builds: dict[int, Build]
) -> None:
    before = served_version(settings)
    damaged, foreign = deploy(settings, builds[4]), deploy(settings, replace(builds[2], version=9))
    assert (damaged.state, foreign.state) == ("failed", "failed")
    assert "model.onnx: does not match its digest" in damaged.reason
    assert "model_version 2, not 9" in foreign.reason
    assert served_version(settings) == before


def test_what_the_database_calls_live_takes_over_only_when_it_is_ready(
    reconciler: Reconciler, settings: Settings, builds: dict[int, Build]
) -> None:
    """As after a rollout whose record arrived though it was taken back: until then, what serves goes on serving."""
    url = settings.database_url("darkroom")
    assert deploy(settings, builds[1]).state == "live"
    with Load(settings.gateway_port, "/v1/classify").running() as load:
        assert database.mark_live(url, database.request_deployment(url, builds[2], SPEC, actor=ACTOR), actor=ACTOR)
        wait_until(lambda: load.versions.get("2"))
    assert load.failures == []
    assert database.current(url, "colours").build == builds[2]  # type: ignore[union-attr]
    wait_until(lambda: len(reconciler.processes()) == 1)


@pytest.fixture
def own(settings: Settings, postgres_settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Settings:
    """A home, a gateway and a schema of a test's own, over the module's store."""
    monkeypatch.delenv(VARIABLE)
    url = in_own_schema(postgres_settings)
    for name, value in {
        VARIABLE: url,
        "DARKROOM_HOME": str(tmp_path),
        "DARKROOM_STORE": settings.store_uri,
        "DARKROOM_GATEWAY_PORT": str(free_port()),
        "DARKROOM_ENVOY_ADMIN_PORT": str(free_port()),
    }.items():
        monkeypatch.setenv(name, value)
    return settings_module.load()


def test_a_live_bento_that_is_lost_does_not_keep_the_next_one_from_serving(
    own: Settings, builds: dict[int, Build]
) -> None:
    url = own.database_url("darkroom")
    database.migrate(url)
    lost = replace(builds[1], bento_digest="0" * 64, bento_key="bentos/lost.tar")
    assert database.mark_live(url, database.request_deployment(url, lost, SPEC, actor=ACTOR), actor=ACTOR)
    with serving(own):
        assert deploy(own, builds[2]).state == "live"
        assert served_version(own) == "2"


def test_gateway_and_processes_send_spans_where_the_platform_has_a_collector(
    own: Settings, builds: dict[int, Build], monkeypatch: pytest.MonkeyPatch
) -> None:
    with collecting() as collector:
        monkeypatch.setenv("DARKROOM_OTLP_ENDPOINT", collector.endpoint)
        monkeypatch.setenv("DARKROOM_TRACE_SAMPLE", "1")
        with serving(settings_module.load()):
            assert deploy(own, builds[1]).state == "live"
            assert ask(own.gateway_port, "/v1/classify", coloured("red"), {"X-Request-ID": "traced"})[0] == 200
            wait_until(lambda: len({one.service for one in collector.spans if _is_traced(one.attributes)}) == 2)
    # Whoever reads traces learns no key.
    assert AUTHORIZED["Authorization"].removeprefix("Bearer ") not in str(collector.spans)


def _is_traced(attributes: dict[str, object]) -> bool:
    return attributes.get("darkroom.request_id") == "traced"


def test_what_was_live_serves_again_after_a_kill_in_the_middle_of_a_rollout(
    own: Settings, builds: dict[int, Build]
) -> None:
    """A supervisor of its own is killed while version 2 is on its way; the next one brings up both, 2 last."""
    url = own.database_url("darkroom")
    with serving(own):
        assert deploy(own, builds[1]).state == "live"
    # Everything is down, as after a reboot. A platform that gets killed:
    asked = database.request_deployment(url, builds[2], SPEC, actor=ACTOR)
    killed = subprocess.Popen([sys.executable, serving_platform.__file__], start_new_session=True)
    wait_until(lambda: database.get(url, asked.id).state == "starting")
    killed.kill()
    killed.wait()
    with serving(own):
        assert database.wait_for(url, asked.id, 60).state == "live"
        wait_until_answers(own, builds[2], 5)
        with pytest.raises(PlatformError, match="has not answered with it"):
            wait_until_answers(own, builds[1], 0.2)
        assert ask(own.gateway_port, "/v1/models/colours")[1]["model_version"] == "2"
        # And rollback proves the first one again.
        before = database.previous(url, "colours")
        assert before is not None
        back = database.request_deployment(
            url, before.build, before.spec, kind="rollback", origin=before.id, actor=ACTOR
        )
        assert database.wait_for(url, back.id, 60).state == "live"
        assert ask(own.gateway_port, "/v1/models/colours")[1]["model_version"] == "1"
        assert database.previous(url, "colours") is None
    events = [one.event for one in database.history(url)]
    assert events[0] == "key_created"  # of the first key
    assert events[1:] == ["requested", "deploy_live", "requested", "deploy_live", "requested", "rollback_live"]
    *_, last = database.history(url)
    assert (last.actor, last.detail["requested_by"]) == (supervisor(), ACTOR)
