"""Images that are none, or too many: answered by every transport, with no error of ours and no memory kept."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path

import grpc
import pytest
from front_door import PATH, Door, resident_bytes
from hostile_images import given, made
from request_bodies import INFER, infer_call, tar_of
from websockets.sync.client import connect

GROWTH_MB = 50
ANSWERED_WITHIN_S = 1.0

Ask = Callable[[bytes], int]
"""Sends an image; the status of the answer, as HTTP would have it."""


@contextmanager
def by_http(door: Door, path: str, request: Callable[[bytes], tuple[bytes, str]]) -> Iterator[Ask]:
    connection = HTTPConnection("127.0.0.1", door.port, timeout=20)

    def ask(image: bytes) -> int:
        body, content_type = request(image)
        connection.request("POST", path, body, {"Content-Type": content_type})
        response = connection.getresponse()
        data = response.read()
        if response.getheader("content-type") == "application/x-ndjson":
            return int(json.loads(data).get("status", response.status))
        return response.status

    yield ask
    connection.close()


def raw(image: bytes) -> tuple[bytes, str]:
    return image, "image/png"


def form(image: bytes) -> tuple[bytes, str]:
    head = b'--edge\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
    return head + image + b"\r\n--edge--\r\n", "multipart/form-data; boundary=edge"


def tar(image: bytes) -> tuple[bytes, str]:
    return tar_of([image]), "application/x-tar"


def tensor(image: bytes) -> tuple[bytes, str]:
    data = [base64.b64encode(image).decode()]
    inputs = [{"name": "image", "datatype": "BYTES", "shape": [1], "data": data}]
    return json.dumps({"inputs": inputs}).encode(), "application/json"


@contextmanager
def by_grpc(door: Door) -> Iterator[Ask]:
    with grpc.insecure_channel(f"127.0.0.1:{door.port}") as channel:
        infer = channel.unary_unary(INFER)

        def ask(image: bytes) -> int:
            try:
                infer(infer_call(image), timeout=20)
            except grpc.RpcError as error:
                return 400 if error.code() == grpc.StatusCode.INVALID_ARGUMENT else 500
            return 200

        yield ask


@contextmanager
def by_stream(door: Door) -> Iterator[Ask]:
    with connect(f"ws://127.0.0.1:{door.port}/v1/models/colours/stream", max_size=None) as stream:

        def ask(image: bytes) -> int:
            stream.send(image)
            return int(json.loads(stream.recv(timeout=20)).get("status", 200))

        yield ask


TRANSPORTS: dict[str, Callable[[Door], object]] = {
    "raw": lambda door: by_http(door, PATH, raw),
    "form": lambda door: by_http(door, PATH, form),
    "embed": lambda door: by_http(door, "/v1/models/colours/embed", raw),
    "batch-form": lambda door: by_http(door, f"{PATH}/batch", form),
    "batch-tar": lambda door: by_http(door, f"{PATH}/batch", tar),
    "oip-rest": lambda door: by_http(door, "/v2/models/colours/infer", tensor),
    "grpc": by_grpc,
    "stream": by_stream,
}


@pytest.fixture(scope="module", params=[4, pytest.param(200, marks=pytest.mark.full)], ids=["few", "many"])
def images(request: pytest.FixtureRequest) -> list[tuple[str, bytes]]:
    return [*made(request.param), *given()]


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_hostile_images(door: Door, images: list[tuple[str, bytes]], transport: str) -> None:
    statuses: dict[str, int] = {}
    slow: dict[str, float] = {}
    with TRANSPORTS[transport](door) as ask:  # type: ignore[attr-defined]
        for _, image in images[:20]:
            ask(image)  # what decoders allocate once is no growth
        before = resident_bytes(door.served.pid)
        for name, image in images:
            began = time.monotonic()
            statuses[name] = ask(image)
            if (seconds := time.monotonic() - began) > ANSWERED_WITHIN_S:
                slow[name] = round(seconds, 2)
    assert {name: status for name, status in statuses.items() if status not in (200, 400, 413, 415, 422)} == {}
    assert slow == {}
    assert resident_bytes(door.served.pid) - before < GROWTH_MB * 1e6
    log = Path(door.served.log).read_text()
    assert "Traceback" not in log
    assert "unexpected error" not in log
