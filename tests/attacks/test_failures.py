"""Processes that end, are killed or have too much to do, and an offline tier that is away: what clients see of it."""

from __future__ import annotations

import base64
import io
import json
import os
import signal
import socket
import tarfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import replace
from http.client import HTTPConnection
from pathlib import Path

import grpc
import pytest
from example_packages import coloured
from front_door import PATH, Door, front_door
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from homes import settings_under
from http2_frames import DATA, END_STREAM, HEADERS, Connection, frame, request_of
from PIL import Image
from request_bodies import INFER, infer_call
from serving_platform import listens, wait_until
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from bentos.classifier.oip import inference_pb2 as messages
from pipelines.core.limits import MAX_BODY_BYTES
from pipelines.core.model_package import ModelPackage


def large(seed: int) -> bytes:
    """An image that takes a while to decode, though few bytes long; another one for each seed."""
    file = io.BytesIO()
    Image.new("RGB", (4800, 4800), (200, 40, seed)).save(file, "PNG", compress_level=1)
    return file.getvalue()


def new_door(bento: Path, package: ModelPackage, folder: Path, **variables: str) -> AbstractContextManager[Door]:
    settings = replace(settings_under(folder / "home"), default_model="colours")
    return front_door(settings, bento, package, DARKROOM_MAX_BODY_BYTES=str(MAX_BODY_BYTES), **variables)


# --- a graceful end ------------------------------------------------------------------------------------------------


def post(door: Door, path: str, body: bytes) -> str:
    connection = HTTPConnection("127.0.0.1", door.port, timeout=30)
    try:
        connection.request("POST", path, body)
        response = connection.getresponse()
        return f"{response.status} {json.loads(response.read())}"
    finally:
        connection.close()


def call(door: Door, image: bytes) -> str:
    with grpc.insecure_channel(f"127.0.0.1:{door.port}") as channel:
        answer = messages.ModelInferResponse.FromString(channel.unary_unary(INFER)(infer_call(image), timeout=30))
        return f"200 {answer.model_name}"


def by_http2(door: Door, image: bytes) -> str:
    """The status is HPACK's table's: 0x88 is 200."""
    with Connection(door.port) as connection:
        connection.open(1, request_of(PATH, **{"content-length": str(len(image))}))
        connection.send(frame(DATA, END_STREAM, 1, image))
        while not connection.seen[HEADERS]:
            connection.read()
            assert not connection.ended
    return "200" if connection.first_headers[:1] == b"\x88" else repr(connection.first_headers)


def stream(door: Door, image: bytes) -> str:
    with connect(f"ws://127.0.0.1:{door.port}/v1/models/colours/stream") as socket:
        socket.send(image)
        answer = json.loads(socket.recv(timeout=30))
        with pytest.raises(ConnectionClosed) as closed:
            socket.recv(timeout=30)
    code = closed.value.rcvd.code if closed.value.rcvd else 0
    return f"{answer.get('status', 200)} {answer['model_name']} then {code}"


ways: dict[str, Callable[[Door, bytes], str]] = {
    "classify": lambda door, image: post(door, PATH, image),
    "http2": by_http2,
    "embed": lambda door, image: post(door, "/v1/models/colours/embed", image),
    "grpc": call,
    "stream": stream,
}


def test_a_process_that_is_asked_to_end_answers_what_it_has(bento: Path, package: ModelPackage, tmp_path: Path) -> None:
    """SIGTERM in the middle of requests by every protocol: each gets its answer, and then the process is gone.

    A request of many images keeps the one thread busy until all others wait behind it.
    """
    num_images = 8
    busy = tensors([large(0)] * num_images)
    one_thread = {"DARKROOM_CONCURRENCY": "1", "DARKROOM_MAX_WAIT_MS": "60000"}
    with new_door(bento, package, tmp_path, **one_thread) as door, ThreadPoolExecutor(8) as clients:
        first = clients.submit(post, door, "/v2/models/colours/infer", busy)
        wait_until(lambda: metric(door, "darkroom_waiting_images") == num_images)
        asked = {
            name: clients.submit(way, door, coloured("red", 100 + number))
            for number, (name, way) in enumerate(ways.items())
        }
        wait_until(lambda: metric(door, "darkroom_waiting_images") == num_images + len(ways))
        os.kill(door.served.pid, signal.SIGTERM)
        answers = {name: future.result() for name, future in asked.items()} | {"many": first.result()}
        assert {name: answer[:3] for name, answer in answers.items()} == dict.fromkeys([*ways, "many"], "200")
        assert answers["stream"] == "200 colours then 1012"
        wait_until(lambda: ended(door.served.pid))


def test_a_batch_of_which_half_has_come_is_taken_to_its_end(bento: Path, package: ModelPackage, tmp_path: Path) -> None:
    """SIGTERM when some lines are answered and an image is half here: the rest may still come, and is answered."""
    body, end = tar_of([coloured("red", number) for number in range(10)])
    half = end[5] - 100  # in the middle of the sixth
    with new_door(bento, package, tmp_path) as door, socket.create_connection(("127.0.0.1", door.port)) as client:
        client.settimeout(30)
        client.sendall(f"POST {PATH}/batch HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode())
        client.sendall(body[:half])
        answer = b""
        while answer.count(b'"index"') < 5:
            answer += client.recv(65_536)
        os.kill(door.served.pid, signal.SIGTERM)
        wait_until(lambda: not listens(door.served.port))
        client.sendall(body[half:])
        while answer.count(b'"index"') < 10:
            more = client.recv(65_536)
            assert more, answer
            answer += more
        assert answer.count(b'"predictions"') == 10
        wait_until(lambda: ended(door.served.pid))


def test_streams_of_grpc_learn_that_a_process_ends_and_do_not_keep_it(
    bento: Path, package: ModelPackage, tmp_path: Path
) -> None:
    """Whoever watches its health is told; neither this nor a reflection that is left open holds the process."""
    with (
        new_door(bento, package, tmp_path) as door,
        grpc.insecure_channel(f"127.0.0.1:{door.served.grpc_port}") as channel,
    ):
        health = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service="colours"))
        assert next(health).status == health_pb2.HealthCheckResponse.SERVING
        left_open = threading.Event()
        reflected = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(asking(left_open))
        assert next(reflected).list_services_response.service
        began = time.monotonic()
        os.kill(door.served.pid, signal.SIGTERM)
        assert next(health).status == health_pb2.HealthCheckResponse.NOT_SERVING
        wait_until(lambda: ended(door.served.pid))
        left_open.set()
        assert time.monotonic() - began < 10


def test_grpc_begins_to_drain_when_http_does(bento: Path, package: ModelPackage, tmp_path: Path) -> None:
    """Both have the same time: who watches learns of the end while an image still arrives by HTTP."""
    image = coloured("red")
    with (
        new_door(bento, package, tmp_path) as door,
        grpc.insecure_channel(f"127.0.0.1:{door.served.grpc_port}") as channel,
        socket.create_connection(("127.0.0.1", door.served.port), timeout=30) as client,
    ):
        health = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service="colours"))
        assert next(health).status == health_pb2.HealthCheckResponse.SERVING
        client.sendall(f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(image)}\r\n\r\n".encode() + image[:9])
        wait_until(lambda: metric(door, "darkroom_bytes_in_flight"))
        os.kill(door.served.pid, signal.SIGTERM)
        assert next(health).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert not ended(door.served.pid)
        client.sendall(image[9:])
        assert client.recv(65_536).startswith(b"HTTP/1.1 200")
        wait_until(lambda: ended(door.served.pid))


def asking(left_open: threading.Event) -> Iterator[reflection_pb2.ServerReflectionRequest]:
    """One question, and no end of the stream."""
    yield reflection_pb2.ServerReflectionRequest(list_services="")
    left_open.wait(60)


def tar_of(images: list[bytes]) -> tuple[bytes, list[int]]:
    """A tar, and where each image ends in it."""
    file, end = io.BytesIO(), []
    with tarfile.open(fileobj=file, mode="w") as archive:
        for number, image in enumerate(images):
            member = tarfile.TarInfo(f"{number}.png")
            member.size = len(image)
            archive.addfile(member, io.BytesIO(image))
            end.append(archive.offset - -len(image) % 512)
    return file.getvalue(), end


def ended(pid: int) -> bool:
    """Ours, so it stays as a zombie until it is waited for."""
    return not Path(f"/proc/{pid}/cmdline").read_bytes()


def tensors(images: list[bytes]) -> bytes:
    data = [base64.b64encode(image).decode() for image in images]
    inputs = [{"name": "image", "datatype": "BYTES", "shape": [len(images)], "data": data}]
    return json.dumps({"inputs": inputs}).encode()


def metric(door: Door, name: str) -> float:
    connection = HTTPConnection("127.0.0.1", door.served.port, timeout=20)
    try:
        connection.request("GET", "/metrics")
        lines = connection.getresponse().read().decode().splitlines()
    finally:
        connection.close()
    return float(next(line.split()[-1] for line in lines if line.startswith(f"{name} ")))


# --- too much to do ------------------------------------------------------------------------------------------------


def test_more_than_there_is_time_for_is_refused_at_once(bento: Path, package: ModelPackage, tmp_path: Path) -> None:
    """Two images may wait; whoever comes beyond them is told when to come again, before anything is decoded."""
    images = [large(seed) for seed in range(12)]

    def attack(image: bytes) -> tuple[int, bool]:
        connection = HTTPConnection("127.0.0.1", door.port, timeout=30)
        try:
            connection.request("POST", PATH, image)
            response = connection.getresponse()
            response.read()
            return response.status, (response.getheader("retry-after") or "").isdecimal()
        finally:
            connection.close()

    with new_door(bento, package, tmp_path, DARKROOM_MAX_WAITING="2") as door, ThreadPoolExecutor(12) as clients:
        found = Counter(clients.map(attack, images))
    assert set(found) == {(200, False), (503, True)}
