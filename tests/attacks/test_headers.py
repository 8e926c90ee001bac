"""Headers and frames that no well-meaning client sends: refused before anything is made of them."""

from __future__ import annotations

import json
import socket

import pytest
from example_packages import coloured
from front_door import PATH, Bystander, Door, memory_of, raw_answer
from http2_frames import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PING,
    RST_STREAM,
    SETTINGS,
    Connection,
    frame,
    header_block,
    request_of,
)
from serving_platform import ask

from bentos.kit.heads import MAX_HEAD_BYTES


@pytest.mark.parametrize(
    ("head", "statuses"),
    [
        ("GET / HTTP/1.1\r\nHost: x\r\nX-Long: " + "a" * 40_000, {431}),
        ("GET / HTTP/1.1\r\nHost: x\r\n" + "\r\n".join(f"X-{number}: a" for number in range(200)), {431}),
        ("GET /" + "a" * 40_000 + " HTTP/1.1\r\nHost: x", {431}),
        # Two lengths are how requests are smuggled.
        ("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nTransfer-Encoding: chunked", {400}),
        ("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nContent-Length: 5", {400}),
        ("GET /v1%2fmodels HTTP/1.1\r\nHost: x", {400}),
        ("GET / HTTP/1.0", {426}),
        ("GET / HTTP/1.1\r\nNo Colon", {400}),
        ("CONNECT x:1 HTTP/1.1\r\nHost: x", {403, 404}),
    ],
    ids=["long", "many", "path", "two-lengths", "lengths-differ", "slash", "http-1.0", "colon", "connect"],
)
def test_a_head_that_is_wrong_is_refused(door: Door, head: str, statuses: set[int]) -> None:
    answer = raw_answer(door.port, f"{head}\r\nConnection: close\r\n\r\n".encode())
    assert int(answer.split()[1]) in statuses, answer[:300]


def takes(connection: socket.socket, piece: bytes) -> bool:
    """Whether 64 MiB of it are taken."""
    try:
        for _ in range(64 * 2**20 // len(piece)):
            connection.sendall(piece)
    except OSError:
        return False
    return True


@pytest.mark.parametrize(
    "piece",
    [b"X: " + b"a" * 1000, b"X-A: b\r\n" * 100, b"\r\n" * 500],
    ids=["one", "many", "none"],
)
def test_a_head_without_end_is_refused_by_a_process_too(door: Door, piece: bytes) -> None:
    """Of `\\r\\n` alone no head comes at all."""
    start = b"" if piece.startswith(b"\r") else b"GET /readyz HTTP/1.1\r\nHost: x\r\nX: "
    with memory_of(door.pids) as memory, socket.create_connection(("127.0.0.1", door.served.port), 20) as connection:
        connection.sendall(start)
        assert not takes(connection, piece)
    assert max(memory.growth_mb) < 10
    assert ask(door.served.port, "/readyz")[0] == 200


def test_a_head_that_is_too_large_for_a_process_is_told_so(door: Door) -> None:
    head = b"GET /readyz HTTP/1.1\r\nHost: x\r\nX-Long: " + b"a" * 60_000
    assert raw_answer(door.served.port, head + b"\r\nConnection: close\r\n\r\n").startswith(b"HTTP/1.1 200 ")
    with socket.create_connection(("127.0.0.1", door.served.port), 20) as connection:
        connection.sendall(head)
        connection.sendall(b"a" * (MAX_HEAD_BYTES + 1 - len(head)))
        answer = connection.recv(65_536)
    assert answer.startswith(b"HTTP/1.1 431 ")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["reason"] == "head_too_large"


@pytest.mark.parametrize("piece", [b"a" * 1000, b"X-A: b\r\n" * 100], ids=["extension", "trailers"])
def test_neither_does_a_body_hide_one(door: Door, piece: bytes) -> None:
    """Between its chunks, and behind the last."""
    start = b"1;" if piece.startswith(b"a") else b"0\r\n"
    with memory_of(door.pids) as memory, socket.create_connection(("127.0.0.1", door.served.port), 20) as connection:
        connection.sendall(f"POST {PATH} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode() + start)
        assert not takes(connection, piece)
    assert max(memory.growth_mb) < 10


def test_paths_mean_what_they_say(door: Door) -> None:
    """Whatever way leads there: the limits of a path are those of where it leads."""
    for path in (f"/x/..{PATH}", f"/{PATH}", PATH.replace("/v1", "/./v1")):
        status, problem = ask(door.port, path, headers={"content-length": str(2**30)})
        assert status == 413, problem
        assert ask(door.port, path, coloured("red"))[0] == 200


def test_an_answer_tells_nothing_of_the_house(door: Door) -> None:
    for request in ("GET /readyz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", "x\r\n\r\n"):
        head = raw_answer(door.port, request.encode()).partition(b"\r\n\r\n")[0].decode().lower()
        assert "x-envoy" not in head
        assert "server: darkroom" in head or "server:" not in head
        assert not any(word in head for word in ("uvicorn", "bentoml", "envoy"))


def test_the_gateways_own_answers_are_problems(door: Door) -> None:
    answer = raw_answer(door.port, b"GET /nowhere HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"content-type: application/problem+json" in head
    assert json.loads(body)["status"] == 404


def _pings() -> list[bytes]:
    return [frame(PING, 0, 0, bytes(8))] * 20_000


def _settings() -> list[bytes]:
    return [frame(SETTINGS, 0, 0, b"\0\4\0\1\0\0")] * 20_000


def _resets() -> list[bytes]:
    """Streams that are opened and given up (CVE-2023-44487)."""
    head = header_block(request_of(PATH))
    return [
        frame(HEADERS, END_HEADERS, number, head) + frame(RST_STREAM, 0, number, bytes(4))
        for number in range(1, 20_001, 2)
    ]


def _endless_headers() -> list[bytes]:
    """A header block that never ends (CVE-2024-27983 and its kin)."""
    more = header_block({f"x-{number}": "a" * 100 for number in range(100)})
    return [frame(HEADERS, 0, 1, header_block(request_of(PATH))), *([frame(CONTINUATION, 0, 1, more)] * 2000)]


def _empty_data() -> list[bytes]:
    head = frame(HEADERS, END_HEADERS, 1, header_block(request_of(PATH)))
    return [head, *([frame(DATA, 0, 1)] * 20_000)]


def _streams() -> list[bytes]:
    head = header_block(request_of(PATH))
    return [frame(HEADERS, END_HEADERS, number, head) for number in range(1, 2001, 2)]


@pytest.mark.parametrize("flood", [_pings, _settings, _resets, _endless_headers, _empty_data, _streams])
def test_floods_of_frames(door: Door, flood: object) -> None:
    """The connection is given up, or what is too much of it refused; memory is flat, and others are served."""
    with memory_of(door.pids) as memory, Bystander(door.port).asking() as bystander:
        for _ in range(5):
            with Connection(door.port) as connection:
                frames = flood()  # type: ignore[operator]
                for place in range(0, len(frames), 500):
                    connection.send(*frames[place : place + 500])
                connection.send(frame(HEADERS, END_HEADERS | END_STREAM, 99_999, header_block(request_of("/"))))
                connection.socket.settimeout(10)
                while not (connection.ended or connection.seen[GOAWAY] or connection.seen[RST_STREAM]):
                    connection.read()
    assert sum(memory.growth_mb) < 60, memory.growth_mb
    assert bystander.failures == []
