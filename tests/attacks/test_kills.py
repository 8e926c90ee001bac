"""Processes that are killed, and an offline tier that is away: what clients see of it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from http.client import HTTPConnection, HTTPException
from pathlib import Path

import grpc
import pytest
import serving_platform
from example_packages import COLOURS, coloured
from front_door import PATH
from homes import settings_under
from request_bodies import INFER, infer_call, tar_of
from serving_platform import AUTHORIZED, SPEC, Load, ask, deploy, make_build, serving, wait_until
from websockets.exceptions import WebSocketException
from websockets.sync.client import connect

from bentos.classifier.oip import inference_pb2 as messages
from pipelines.adapters import database
from pipelines.core.access import new_key
from pipelines.core.processes import marked
from pipelines.local import postgres
from pipelines.local.process import PLATFORM_MARK, ManagedProcess
from pipelines.settings import Settings


@pytest.fixture
def database_server(house: Settings) -> Iterator[ManagedProcess]:
    server = postgres.start(house)
    yield server
    postgres.stop(server)


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """A home where nothing serves yet."""
    settings = replace(settings_under(tmp_path / "home"), default_model="colours")
    monkeypatch.setenv("DARKROOM_HOME", str(settings.home))
    monkeypatch.setenv("DARKROOM_GATEWAY_PORT", str(settings.gateway_port))
    monkeypatch.setenv("DARKROOM_DEFAULT_MODEL", "colours")
    return settings


def new_predictor(house: Settings, name: str) -> dict[str, str]:
    """The header of a new key in the database."""
    key = new_key()
    grant = database.Grant(name=name, role="predictor")
    database.create_key(house.database_url("darkroom"), key, grant, actor="test")
    return {"Authorization": f"Bearer {key}"}


@pytest.mark.heavy
def test_predictions_go_on_without_database_and_object_store(
    house: Settings, database_server: ManagedProcess, tmp_path: Path
) -> None:
    """Even a process that dies meanwhile is back: its bento lies unpacked on this machine. MLflow was never asked."""
    build = make_build(house, tmp_path, model="colours", version=1)
    with serving(house) as reconciler:
        assert deploy(house, build).state == "live"
        asked, unasked = new_predictor(house, "asked"), new_predictor(house, "unasked")
        assert ask(house.gateway_port, PATH, coloured("blue"), asked)[0] == 200
        postgres.stop(database_server)
        shutil.rmtree(house.store_uri)
        # Whom the database vouched for is let in for a while yet; of others nobody can say anything.
        assert ask(house.gateway_port, PATH, coloured("blue"), asked)[0] == 200
        status, problem = ask(house.gateway_port, PATH, coloured("blue"), unasked)
        assert (status, problem["reason"]) == (503, "keys_unavailable")
        made_up = {"Authorization": f"Bearer {new_key()}"}
        assert ask(house.gateway_port, PATH, coloured("blue"), made_up)[0] == 503
        assert ask(house.gateway_port, PATH, coloured("blue"), {"Authorization": "Bearer junk"})[0] == 401
        with Load(house.gateway_port, PATH).running() as load:
            wait_until(lambda: load.num_answers > 50)
        assert load.failures == []
        (process,) = reconciler.processes()
        os.kill(process.pid or 0, signal.SIGKILL)
        began = time.monotonic()
        wait_until(lambda: any(one.restarts == 1 and one.state == "ready" for one in reconciler.processes()))
        wait_until(lambda: ask(house.gateway_port, PATH, coloured("red"))[0] == 200)
        assert time.monotonic() - began < 10


@pytest.mark.heavy
@pytest.mark.parametrize("side", [8, 500, 1000], ids=["small", "collected", "streamed"])
@pytest.mark.usefixtures("database_server")
def test_a_kill_under_load_loses_at_most_what_was_in_flight(house: Settings, tmp_path: Path, side: int) -> None:
    """Bodies that Envoy collects are sent again to another process; of those that stream a client loses one.

    An answer is written in one piece: none has its head out and not its body, so that it could not be asked for again.
    """
    build, clients = make_build(house, tmp_path, model="colours", version=1), 4
    with serving(house) as reconciler:
        assert deploy(house, build, replace(SPEC, workers=2)).state == "live"
        victim = next(one for one in reconciler.processes() if one.state == "ready")
        with Load(house.gateway_port, PATH, side=side).running(threads=clients) as load:
            wait_until(lambda: load.num_answers > 50)
            os.kill(victim.pid or 0, signal.SIGKILL)
            wait_until(lambda: all(one.state == "ready" for one in reconciler.processes()))
    assert len(load.failures) <= (clients if side == 1000 else 0), load.failures


Answer = Callable[[bytes], str]
"""The class of an image; raises where the answer is lost or no answer."""


@contextmanager
def by_grpc(port: int) -> Iterator[Answer]:
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        infer = channel.unary_unary(INFER)

        def answer(image: bytes) -> str:
            authorization = (("authorization", AUTHORIZED["Authorization"]),)
            found = infer(infer_call(image, outputs=["class_name"]), timeout=30, metadata=authorization)
            return messages.ModelInferResponse.FromString(found).raw_output_contents[0][4:].decode()

        yield answer


@contextmanager
def by_stream(port: int) -> Iterator[Answer]:
    with connect(f"ws://127.0.0.1:{port}/v1/models/colours/stream", additional_headers=AUTHORIZED) as socket:

        def answer(image: bytes) -> str:
            socket.send(image)
            return str(json.loads(socket.recv(timeout=30))["predictions"][0]["class_name"])

        yield answer


@contextmanager
def by_batch(port: int) -> Iterator[Answer]:
    connection = HTTPConnection("127.0.0.1", port, timeout=30)

    def answer(image: bytes) -> str:
        connection.request("POST", f"{PATH}/batch", tar_of([image]), AUTHORIZED)
        text = connection.getresponse().read().decode()
        if '"predictions"' not in text:
            raise ValueError(text)
        return str(json.loads(text.split("\n")[0])["predictions"][0]["class_name"])

    try:
        yield answer
    finally:
        connection.close()


@dataclass
class Clients:
    """Two, as many as have a batch each, who ask again and again, and connect anew after a failure."""

    way: Callable[[int], AbstractContextManager[Answer]]
    port: int
    answers: list[int] = field(default_factory=lambda: [0, 0])
    failures: list[str] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def running(self) -> Iterator[Clients]:
        with ThreadPoolExecutor(len(self.answers)) as threads:
            working = [threads.submit(self._work, client) for client in range(len(self.answers))]
            try:
                yield self
            finally:
                self._stop.set()
            for one in working:
                one.result()

    def wait_for_more(self) -> None:
        """Until each has had some answers from now on."""
        before = list(self.answers)
        wait_until(lambda: all(now > then + 20 for now, then in zip(self.answers, before, strict=True)))

    def _work(self, client: int) -> None:
        colour = COLOURS[client]
        image = coloured(colour, client)
        while not self._stop.is_set():
            try:
                with self.way(self.port) as answer:
                    while not self._stop.is_set():
                        assert answer(image) == colour
                        self.answers[client] += 1
                        time.sleep(0.002)
            except (OSError, HTTPException, ValueError, WebSocketException, grpc.RpcError) as error:
                self.failures.append(repr(error))


@pytest.mark.heavy
@pytest.mark.usefixtures("database_server")
def test_a_kill_under_load_costs_each_protocol_what_was_in_flight(house: Settings, tmp_path: Path) -> None:
    """Calls by gRPC are made again. A stream ends with its process, and a batch is not sent twice: what each client had
    under way is lost, and its next try is answered.
    """
    build = make_build(house, tmp_path, model="colours", version=1)
    with serving(house) as reconciler:
        assert deploy(house, build, replace(SPEC, workers=2)).state == "live"

        def both_are_ready() -> bool:
            return sum(one.state == "ready" for one in reconciler.processes()) == 2

        for way, may_lose in ((by_grpc, False), (by_stream, True), (by_batch, True)):
            wait_until(both_are_ready)
            with Clients(way, house.gateway_port).running() as clients:
                clients.wait_for_more()
                os.kill(reconciler.processes()[0].pid or 0, signal.SIGKILL)
                wait_until(lambda: not both_are_ready())
                wait_until(both_are_ready, 10)
                clients.wait_for_more()
            assert len(clients.failures) <= (len(clients.answers) if may_lose else 0), (way.__name__, clients.failures)


@pytest.mark.heavy
@pytest.mark.usefixtures("database_server")
def test_a_supervisor_that_is_killed_leaves_no_process(house: Settings, tmp_path: Path) -> None:
    build = make_build(house, tmp_path, model="colours", version=1)
    with serving(house):
        assert deploy(house, build).state == "live"

    def serving_processes() -> list[int]:
        return [pid for pid in marked(PLATFORM_MARK, str(house.home)) if b"bentos.kit.worker" in _command(pid)]

    with subprocess.Popen([sys.executable, serving_platform.__file__], start_new_session=True) as supervisor:
        wait_until(serving_processes)
        supervisor.kill()
        supervisor.wait()
        wait_until(lambda: not serving_processes(), 5)


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
