"""WebSocket by the frame (RFC 6455): messages that never end, in as many pieces as one likes."""

from __future__ import annotations

import socket
import struct
from contextlib import closing

CONTINUED, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10


def connected(port: int, path: str = "/v1/models/colours/stream") -> socket.socket:
    """A connection after its handshake."""
    found = socket.create_connection(("127.0.0.1", port), timeout=30)
    found.sendall(
        f"GET {path} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
    )
    head = b""
    while b"\r\n\r\n" not in head:
        head += found.recv(4096)
    assert head.startswith(b"HTTP/1.1 101"), head
    return found


def head_of(size: int, *, opcode: int = BINARY, final: bool = True) -> bytes:
    """Of a frame masked with zeros, so that its payload goes as it is."""
    first = bytes([(128 if final else 0) | opcode])
    if size < 126:
        length = bytes([128 | size])
    elif size < 65_536:
        length = bytes([128 | 126]) + struct.pack("!H", size)
    else:
        length = bytes([128 | 127]) + struct.pack("!Q", size)
    return first + length + bytes(4)


def close_code(connection: socket.socket) -> int:
    """The code with which the other side closes; 0 where it goes without a word."""
    data = b""
    with closing(connection):
        try:
            while more := connection.recv(65_536):
                data += more
        except OSError:
            pass
    place = 0
    while place + 4 <= len(data):
        size = data[place + 1] & 127
        start = place + 2
        if size == 126:
            size, start = int.from_bytes(data[start : start + 2], "big"), start + 2
        if data[place] & 15 == 8:
            return int.from_bytes(data[start : start + 2], "big")
        place = start + size
    return 0
