"""WebSocket by the frame (RFC 6455): messages that never end, in as many pieces as one likes."""

from __future__ import annotations

import socket
import struct
from contextlib import closing

CONTINUED, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10


HANDSHAKE = {
    "Host": "x",
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    "Sec-WebSocket-Version": "13",
}
PATH = "/v1/models/colours/stream"


def opened(port: int, start: str = f"GET {PATH} HTTP/1.1", **changes: str | None) -> tuple[socket.socket, bytes]:
    """A connection and all that was answered to its handshake; `changes` of headers, None leaves one out."""
    headers = {**HANDSHAKE, **{name.replace("_", "-"): value for name, value in changes.items()}}
    lines = [start, *(f"{name}: {value}" for name, value in headers.items() if value is not None)]
    found = socket.create_connection(("127.0.0.1", port), timeout=30)
    found.sendall("\r\n".join([*lines, "", ""]).encode())
    head = b""
    while b"\r\n\r\n" not in head and (more := found.recv(1)):
        head += more
    return found, head


def connected(port: int, path: str = PATH) -> socket.socket:
    """A connection after its handshake."""
    found, head = opened(port, f"GET {path} HTTP/1.1")
    assert head.startswith(b"HTTP/1.1 101"), head
    return found


def frame(
    opcode: int,
    payload: bytes = b"",
    *,
    final: bool = True,
    rsv: int = 0,
    mask: bytes | None = b"abcd",
    length: int = 0,
) -> bytes:
    """Any frame, also one that RFC 6455 forbids. `length`: so many bytes for the payload's length; 0: as few as do."""
    size = len(payload)
    bits = 0 if mask is None else 128
    wide = length or (0 if size < 126 else 2 if size < 65_536 else 8)
    head = bytes([(128 if final else 0) | rsv << 4 | opcode, bits | {0: size, 2: 126, 8: 127}[wide]])
    head += size.to_bytes(wide, "big") if wide else b""
    if mask is None:
        return head + payload
    whole = (mask * (size // 4 + 1))[:size]
    masked = int.from_bytes(payload, "big") ^ int.from_bytes(whole, "big")
    return head + mask + masked.to_bytes(size, "big")


def read_frames(connection: socket.socket, number: int) -> list[tuple[int, bytes]]:
    """The next so many frames as opcode and payload; fewer where the other side closes."""
    stream, found = connection.makefile("rb"), []
    try:
        while len(found) < number and len(head := stream.read(2)) == 2:
            assert head[0] >> 4 == 8, "servers here send whole frames without extensions"
            assert head[1] < 128, "servers do not mask"
            wide = {126: 2, 127: 8}.get(head[1], 0)
            size = int.from_bytes(stream.read(wide), "big") if wide else head[1]
            found.append((head[0] & 15, stream.read(size)))
    except ConnectionResetError:
        pass
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
