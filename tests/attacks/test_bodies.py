"""Bodies without end, in every protocol, a hundred at once: all are refused, and memory does not follow them."""

from __future__ import annotations

import json
import socket
import tarfile
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from example_packages import coloured
from front_door import PATH, Bystander, Door, memory_of
from http2_frames import GRPC, Connection, request_of
from serving_platform import ask
from websocket_frames import BINARY, CONTINUED, PING, close_code, connected, head_of

from pipelines.core.limits import MAX_BATCH_BYTES, MAX_BODY_BYTES

MIB = 2**20
GIB = 2**30
ATTACKERS = 100
GROWTH_MB = 250
"""Of both processes, for bodies of 100 GiB: the bytes that a process may hold (128 MiB) and what Envoy has on its way;
246 where it was measured, once, and 1 for the next hundred bodies. Without limits it would be 2 GB."""
MESSAGES_MB = 537
"""The same for messages by gRPC, which Envoy holds until their model's name is read: its heap's limit. 331 to 404 were
measured, and up to 580 while it looked at its heap four times a second only."""

sizes = pytest.mark.parametrize(
    "num_bytes", [32 * MIB, pytest.param(GIB, marks=pytest.mark.full)], ids=["32-MiB", "1-GiB"]
)


def answers_to(attack: Callable[[int], object]) -> Counter[object]:
    with ThreadPoolExecutor(ATTACKERS) as attackers:
        return Counter(attackers.map(attack, range(ATTACKERS)))


def status_of_chunked(port: int, path: str, num_bytes: int) -> int:
    """Send a body that does not say how long it is, until it is answered."""
    piece = b"100000\r\n" + bytes(MIB) + b"\r\n"
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(f"POST {path} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
        try:
            for _ in range(num_bytes // MIB):
                connection.sendall(piece)
        except OSError:
            pass  # it was answered before all of it was sent
        answer = connection.recv(65_536)
    head, _, body = answer.partition(b"\r\n\r\n")
    status = int(head.split()[1])
    assert (b"retry-after" in head.lower()) == (status == 503)
    assert json.loads(body)["status"] == status
    return status


@sizes
@pytest.mark.parametrize("path", [PATH, f"{PATH}/batch", "/v2/models/colours/infer"])
def test_bodies_without_end(door: Door, path: str, num_bytes: int) -> None:
    with memory_of(door.pids) as memory, Bystander(door.port).asking() as bystander:
        found = answers_to(lambda _: status_of_chunked(door.port, path, max(num_bytes, 2 * MAX_BATCH_BYTES)))
    assert set(found) <= {413, 503}
    assert sum(memory.growth_mb) < GROWTH_MB, memory.growth_mb
    assert bystander.failures == []


@pytest.mark.parametrize("straight", [False, True], ids=["gateway", "process"])
def test_batches_that_all_begin_before_any_goes_on(door: Door, straight: bool) -> None:
    """Each sends the head of a file, and when all have been looked at, the file: whoever has no place is answered."""
    size, port = 8 * MIB, door.served.port if straight else door.port
    member = tarfile.TarInfo("large")
    member.size = size
    head = f"POST {PATH}/batch HTTP/1.1\r\nHost: x\r\nContent-Length: {2 * MAX_BODY_BYTES}\r\n\r\n".encode()
    all_here = threading.Barrier(ATTACKERS)

    def attack(_: int) -> int:
        with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
            connection.sendall(head + member.tobuf())
            all_here.wait(60)
            try:
                for _piece in range(size // MIB):
                    connection.sendall(bytes(MIB))
                return int(connection.recv(65_536).split()[1])
            except (OSError, IndexError):  # refused before all of it was sent; the word was lost
                return 503

    with memory_of(door.pids) as memory, Bystander(door.port).asking() as bystander:
        found = answers_to(attack)
    # What the first have of the places is no images, and a line says so.
    assert set(found) == {200, 503}
    assert found[200] <= 8, found
    assert sum(memory.growth_mb) < GROWTH_MB, memory.growth_mb
    assert bystander.failures == []


@pytest.mark.parametrize(
    ("path", "limit"), [(PATH, MAX_BODY_BYTES), (f"{PATH}/batch", MAX_BATCH_BYTES), ("/nowhere", MAX_BODY_BYTES)]
)
def test_a_body_that_says_it_is_too_large_is_refused_unread(door: Door, path: str, limit: int) -> None:
    for size in (limit + 1, GIB, 2**40):
        with memory_of(door.pids) as memory:
            status, problem = ask(door.port, path, headers={"content-length": str(size)})
        assert (status, problem["status"]) == (413, 413)
        assert max(memory.growth_mb) < 10


@sizes
def test_messages_without_end(door: Door, num_bytes: int) -> None:
    """Envoy keeps a message until its model's name is read; what it keeps of all of them is bounded."""
    length = b"\0" + (GIB).to_bytes(4, "big")

    def attack(_: int) -> bool:
        with Connection(door.port) as connection:
            connection.open(1, request_of("/inference.GRPCInferenceService/ModelInfer", **GRPC))
            sent = connection.send_body(1, num_bytes, start=length)
            while not connection.ended and not connection.seen[1] and not connection.seen[3]:
                connection.read()
            return sent < num_bytes

    with memory_of(door.pids) as memory, Bystander(door.port).asking() as bystander:
        assert answers_to(attack) == {True: ATTACKERS}
    assert sum(memory.growth_mb) < MESSAGES_MB, memory.growth_mb
    assert bystander.failures == []


@sizes
@pytest.mark.parametrize("num_pieces", [1, 64])
def test_frames_without_end(door: Door, num_bytes: int, num_pieces: int) -> None:
    """Declared at once or never, whole or in fragments."""

    def attack(_: int) -> int:
        connection = connected(door.port)
        size = num_bytes // num_pieces
        try:
            for number in range(num_pieces):
                opcode = CONTINUED if number else BINARY
                connection.sendall(head_of(size, opcode=opcode, final=number == num_pieces - 1))
                for _ in range(size // (MIB // 4)):
                    connection.sendall(bytes(MIB // 4))
        except OSError:
            pass  # closed before all of it was sent
        return close_code(connection)

    with memory_of(door.pids) as memory, Bystander(door.port).asking() as bystander:
        found = answers_to(attack)
    # 1009: too large; 1013: others arrive already; 0: the word was lost, as ours was still being sent.
    assert set(found) <= {1009, 1013, 0}, found
    assert sum(memory.growth_mb) < GROWTH_MB, memory.growth_mb
    assert bystander.failures == []


def test_a_message_in_fragments_without_number(door: Door) -> None:
    connection = connected(door.port)
    empty = head_of(0, opcode=CONTINUED, final=False)
    with memory_of(door.pids) as memory:
        connection.sendall(head_of(1, opcode=BINARY, final=False) + b"x" + empty * 5000)
        assert close_code(connection) == 1009
    assert max(memory.growth_mb) < 10


@pytest.mark.parametrize("straight", [False, True], ids=["gateway", "process"])
@pytest.mark.parametrize(
    ("opcode", "size"), [(PING, 125), (PING, 0), (BINARY, 0)], ids=["pings", "empty-pings", "empty-messages"]
)
def test_small_frames_without_end(door: Door, straight: bool, opcode: int, size: int) -> None:
    """Each is answered or waits for its answer, which nobody reads."""
    piece = (head_of(size, opcode=opcode) + bytes(size)) * (MIB // (size + 6))

    def attack(_: int) -> bool:
        connection = connected(door.served.port if straight else door.port)
        connection.settimeout(3)
        with connection:
            try:
                for _piece in range(32):
                    connection.sendall(piece)
            except OSError:  # closed, or no longer read from
                return True
        return False

    with (
        memory_of(door.pids) as memory,
        Bystander(door.port).asking() as bystander,
        ThreadPoolExecutor(20) as attackers,
    ):
        assert set(attackers.map(attack, range(20))) == {True}
    assert sum(memory.growth_mb) < 60, memory.growth_mb
    assert bystander.failures == []


def test_a_small_image_gets_in_while_large_bodies_hold_what_they_may(door: Door) -> None:
    held = [socket.create_connection(("127.0.0.1", door.port), timeout=30) for _ in range(40)]
    try:
        for connection in held:
            connection.sendall(f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: {MAX_BODY_BYTES}\r\n\r\n".encode())
            connection.sendall(bytes(2 * MIB))
        status, answer = ask(door.port, PATH, coloured("green", 3))
        assert status == 200, answer
    finally:
        for connection in held:
            connection.close()
