"""Clients that send a byte now and then, to hold a place for long."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Sequence

from front_door import PATH, Door
from http2_frames import DATA, GRPC, Connection, frame, request_of
from websocket_frames import connected, head_of

DRIP_S = 0.5
GIVE_UP_S = 30.0

Drip = tuple[socket.socket, bytes]
"""A connection, and what it sends now and then."""


def opened(door: Door, head: bytes, port: int | None = None) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port or door.port), timeout=10)
    connection.sendall(head)
    return connection


def slow_headers(door: Door) -> Drip:
    return opened(door, f"POST {PATH} HTTP/1.1\r\nHost: x\r\n".encode()), b"X-A: b\r\n"


def slow_body(door: Door) -> Drip:
    return opened(door, f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n".encode()), b"x"


def slow_chunks(door: Door) -> Drip:
    return opened(
        door, f"POST {PATH} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    ), b"1\r\nx\r\n"


def slow_batch(door: Door) -> Drip:
    return opened(door, f"POST {PATH}/batch HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n".encode()), b"x"


def slow_message(door: Door) -> Drip:
    """One connection's stream; Envoy ends the stream and, as nothing else lives in it, we count that."""
    connection = Connection(door.port).__enter__()
    connection.open(1, request_of("/inference.GRPCInferenceService/ModelInfer", **GRPC))
    return connection.socket, frame(DATA, 0, 1, b"x")


def slow_frame(door: Door) -> Drip:
    connection = connected(door.port)
    connection.sendall(head_of(1_000_000))
    return connection, b"x"


def slow_handshake(door: Door) -> Drip:
    """The first bytes of a TLS ClientHello, whose rest does not come."""
    return opened(door, b"\x16\x03\x01\x02\x00\x01", door.tls_port), b"\x00"


ATTACKS = (slow_headers, slow_body, slow_chunks, slow_batch, slow_message, slow_frame, slow_handshake)


def is_open(drip: Drip) -> bool:
    """Send the next bytes; False where the other side has answered or closed."""
    connection, piece = drip
    connection.setblocking(False)
    try:
        connection.send(piece)
        return not _has_answered(connection)
    except BlockingIOError:
        return True
    except OSError:
        return False


def _has_answered(connection: socket.socket) -> bool:
    try:
        data = connection.recv(65_536)
    except BlockingIOError:
        return False
    # A window update or a ping is no answer: HTTP/2's HEADERS (1) or RST_STREAM (3), WebSocket's close (0x88).
    return not data or data.startswith(b"HTTP/") or data[:1] == b"\x88" or data[3:4] in (b"\1", b"\3")


def seconds_until_ended(door: Door, attacks: Sequence[Callable[[Door], Drip]]) -> dict[str, float]:
    """How long the slowest of each kind held its place. Each drips at its own time, as strangers would."""
    began = time.monotonic()
    dripping = [(attack.__name__, attack(door)) for attack in attacks]
    left = list(dripping)
    held: dict[str, float] = {}
    try:
        while left and time.monotonic() - began < GIVE_UP_S:
            round_began, still_open = time.monotonic(), []
            for place, (name, drip) in enumerate(left):
                time.sleep(max(0.0, round_began + DRIP_S * place / len(left) - time.monotonic()))
                if is_open(drip):
                    held[name] = time.monotonic() - began
                    still_open.append((name, drip))
            time.sleep(max(0.0, round_began + DRIP_S - time.monotonic()))
            left = still_open
    finally:
        for _, (connection, _piece) in dripping:
            connection.close()
    return held
