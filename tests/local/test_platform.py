"""The platform by its commands, without its heavy parts: up, up again, kills, down. The whole of it is in e2e."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import http2_frames
import psycopg
import pytest
from example_packages import coloured
from request_bodies import infer_call
from serving_platform import deploy, listens, make_build
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from pipelines.adapters import database
from pipelines.adapters.gateway import Gateway, Traffic
from pipelines.core.anchors import newest, parse
from pipelines.core.errors import UserError
from pipelines.core.processes import is_zombie, marked
from pipelines.core.storage import open_storage
from pipelines.local import platform, resources
from pipelines.local.process import PLATFORM_MARK
from pipelines.settings import Settings

WITHOUT = ("--without", "airflow", "--without", "mlflow", "--without", "step-host")
PATH = "/v1/models/colours/classify"
INFER = "/inference.GRPCInferenceService/ModelInfer"


def darkroom(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pipelines.cli.main", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)


def processes() -> dict[str, dict[str, Any]]:
    return {one["name"]: one for one in json.loads(darkroom("status", "--json").stdout)["processes"]}


def until(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition never came true"
        time.sleep(0.05)


@pytest.fixture
def ended(home_settings: Settings) -> Iterator[Settings]:
    yield home_settings
    platform.down(home_settings)
    assert not list(marked(PLATFORM_MARK, str(home_settings.home)))


def grpc_message(image: bytes) -> bytes:
    """A call of ModelInfer, with the length before it that gRPC puts there."""
    data = infer_call(image)
    return b"\0" + len(data).to_bytes(4, "big") + data


def form_of(image: bytes) -> bytes:
    head = b'--edge\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
    return head + image + b"\r\n--edge--\r\n"


@contextlib.contextmanager
def half_sent(port: int, key: dict[str, str], path: str, body: bytes) -> Iterator[socket.socket]:
    """A request of which all but the first 9 bytes of the body are still to come."""
    fields = {
        "Host": "x",
        "Content-Length": str(len(body)),
        "Content-Type": "multipart/form-data; boundary=edge",
        **key,
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(f"POST {path} HTTP/1.1\r\n{head}\r\n".encode() + body[:9])
        yield connection


def to_its_end(connection: socket.socket) -> bytes:
    answer = b""
    while more := connection.recv(65_536):
        answer += more
    return answer


def gateway_answers(settings: Settings) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", settings.gateway_port, timeout=2)
    try:
        connection.request("GET", "/v1/classify")
        return connection.getresponse().status >= 400
    except OSError:
        return False
    finally:
        connection.close()


def similar_answers(settings: Settings) -> tuple[int, str]:
    """What the gateway says of a search, by status and reason."""
    connection = http.client.HTTPConnection("127.0.0.1", settings.gateway_port, timeout=20)
    try:
        connection.request("POST", "/v1/similar", coloured("red"), settings.platform_authorization)
        response = connection.getresponse()
        return response.status, json.loads(response.read())["reason"]
    finally:
        connection.close()


@pytest.mark.heavy
def test_up_kills_and_down(ended: Settings) -> None:
    first = darkroom("up", *WITHOUT)
    assert first.returncode == 0, first.stderr
    assert gateway_answers(ended)
    until(lambda: processes()["similar"]["state"] == "ready")  # the platform does not wait for it
    before = processes()
    assert {"keeper", "supervisor", "postgres", "envoy", "similar"} <= before.keys()
    assert all(one["state"] == "ready" and one["memory"] > 0 for one in before.values())

    again = darkroom("up", *WITHOUT)
    assert "was up" in again.stdout
    assert processes()["supervisor"]["pid"] == before["supervisor"]["pid"]

    os.kill(before["postgres"]["pid"], signal.SIGKILL)
    until(lambda: processes()["postgres"].get("restarts") == 1 and processes()["postgres"]["state"] == "ready")
    with psycopg.connect(ended.database_url("darkroom")) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)

    os.kill(before["similar"]["pid"], signal.SIGKILL)
    until(lambda: processes()["similar"].get("restarts") == 1 and processes()["similar"]["state"] == "ready")
    until(lambda: similar_answers(ended) == (404, "nothing_stored"))

    os.kill(before["supervisor"]["pid"], signal.SIGKILL)
    assert darkroom("up", *WITHOUT).returncode == 0
    after = processes()
    assert after["supervisor"]["pid"] != before["supervisor"]["pid"]
    assert after["keeper"]["pid"] == before["keeper"]["pid"]
    assert gateway_answers(ended)

    for name in ("keeper", "supervisor"):
        os.kill(after[name]["pid"], signal.SIGKILL)
    assert darkroom("up", *WITHOUT).returncode == 0
    assert gateway_answers(ended)

    last = processes()
    assert json.loads(darkroom("status", "--json").stdout)["troubles"] == []
    row = database.record(ended.database_url("darkroom"), "", "key_created", {}, "ada@lab")
    # Neither a gateway that hangs nor a second signal keeps it from its end.
    os.kill(last["envoy"]["pid"], signal.SIGSTOP)
    os.kill(last["supervisor"]["pid"], signal.SIGTERM)
    assert darkroom("down").returncode == 0
    anchor = newest(open_storage(ended.store_uri))
    assert anchor is not None
    assert parse(anchor.data, anchor.key).hash == row.hash  # what was written since the last minute, too
    assert all(is_zombie(one["pid"]) for one in last.values())
    assert processes() == {}
    assert darkroom("down").stdout.startswith("the platform was not up")


@pytest.mark.heavy
def test_down_takes_what_is_in_flight_to_its_end(ended: Settings, tmp_path: Path) -> None:
    """By REST, gRPC and WebSocket: what has come gets its answer, and nobody is let in any more."""
    assert darkroom("up", *WITHOUT, "--without", "similar").returncode == 0
    assert deploy(ended, make_build(ended, tmp_path, model="colours", version=1)).state == "live"
    (worker,) = (one["port"] for name, one in processes().items() if name.startswith("bento-"))
    port, key, image = ended.gateway_port, ended.platform_authorization, coloured("red")
    message, form = grpc_message(image), form_of(image)
    with (
        half_sent(port, key, PATH, form) as rest,
        half_sent(port, key, f"{PATH}/batch", form) as batch,
        http2_frames.Connection(port) as call,
        connect(f"ws://127.0.0.1:{port}/v1/models/colours/stream", additional_headers=key) as stream,
    ):
        call.open(1, http2_frames.request_of(INFER, authorization=key["Authorization"], **http2_frames.GRPC))
        call.send(http2_frames.frame(http2_frames.DATA, 0, 1, message[:9]))
        # A process has the batch and the stream; of the image and the call the gateway alone knows.
        until(lambda: Gateway(ended).traffic() == Traffic(from_clients=4, to_processes=2, unsent_bytes=0))
        down = subprocess.Popen([sys.executable, "-m", "pipelines.cli.main", "down"])
        until(lambda: not listens(port))
        assert listens(worker)

        stream.send(image)
        rest.sendall(form[9:])
        call.send(http2_frames.frame(http2_frames.DATA, http2_frames.END_STREAM, 1, message[9:]))
        answer = rest.recv(65_536)
        assert answer.startswith(b"HTTP/1.1 200"), answer
        assert b"connection: close" in answer
        while not call.seen[http2_frames.DATA]:
            call.read()
            assert not call.ended  # nor an error, which is headers alone
        assert json.loads(stream.recv(timeout=30))["predictions"][0]["class_name"] == "red"
        with pytest.raises(ConnectionClosed) as closed:
            stream.recv(timeout=30)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1012  # the process's own word: it is ending

        until(lambda: not listens(worker))
        batch.sendall(form[9:])
        assert b'"class_name":"red"' in to_its_end(batch)
        assert down.wait(60) == 0


def test_what_is_missing_is_said_before_anything_starts(
    home_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DARKROOM_MIN_MEMORY_MB", "99999999")
    refused = darkroom("up")
    assert refused.returncode == 2
    assert "DARKROOM_MIN_MEMORY_MB" in refused.stderr
    monkeypatch.setenv("DARKROOM_MIN_DISK_MB", "99999999")
    refused = darkroom("up")
    assert refused.returncode == 2
    assert str(home_settings.home) in refused.stderr
    assert "DARKROOM_MIN_DISK_MB" in refused.stderr
    monkeypatch.setenv("DARKROOM_MIN_DISK_MB", "lots")
    assert "DARKROOM_MIN_DISK_MB='lots'" in darkroom("up").stderr


def test_a_home_that_cannot_be_made_is_named(home_settings: Settings) -> None:
    (home_settings.home / "file").write_text("")
    with pytest.raises(UserError, match="DARKROOM_HOME"):
        resources.check_disk(replace(home_settings, home=home_settings.home / "file" / "home"))


def test_logs_names_what_there_is(home_settings: Settings) -> None:
    folder = home_settings.home / "logs"
    folder.mkdir()
    (folder / "envoy.log").write_text("one\ntwo\n")
    assert darkroom("logs", "envoy", "-n", "1").stdout == "two\n"
    assert darkroom("logs").stdout == "envoy: one\nenvoy: two\n"
    missing = darkroom("logs", "nothing")
    assert missing.returncode == 2
    assert "envoy" in missing.stderr
