"""HTTP/2 by the frame (RFC 9113): what no well-behaved client library would send."""

from __future__ import annotations

import socket
import struct
from collections import Counter
from dataclasses import dataclass, field
from types import TracebackType

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
END_STREAM, ACK, END_HEADERS = 1, 1, 4
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_FRAME_BYTES = 16_384


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack("!I", len(payload))[1:] + bytes([kind, flags]) + struct.pack("!I", stream) + payload


def header_block(fields: dict[str, str]) -> bytes:
    """HPACK's literal fields without indexing and without Huffman codes."""

    def text(value: str) -> bytes:
        raw, more = value.encode(), b""
        if len(raw) < 127:
            return bytes([len(raw)]) + raw
        rest = len(raw) - 127
        while rest >= 128:
            more += bytes([rest % 128 + 128])
            rest //= 128
        return b"\x7f" + more + bytes([rest]) + raw

    return b"".join(b"\0" + text(name) + text(value) for name, value in fields.items())


def request_of(path: str, **fields: str) -> dict[str, str]:
    return {":method": "POST", ":scheme": "http", ":path": path, ":authority": "x", **fields}


GRPC = {"content-type": "application/grpc", "te": "trailers"}


@dataclass
class Connection:
    """One connection, as a context; reads what comes back only when told to."""

    port: int
    seen: Counter[int] = field(default_factory=Counter)
    """Frames that came, by kind."""
    window: dict[int, int] = field(default_factory=dict)
    """What may still be sent, by stream; 0 is the connection."""
    ended: bool = False
    first_headers: bytes = b""
    """The block of the first answer."""
    body: bytes = b""
    """Of all answers."""
    num_over: int = 0
    """Answers that are whole, or given up."""
    _initial: int = 65_535
    _buffer: bytes = b""

    def __enter__(self) -> Connection:
        self.socket = socket.create_connection(("127.0.0.1", self.port), timeout=30)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.sendall(_PREFACE + frame(SETTINGS, 0, 0))
        self.window[0] = 65_535
        while not self.seen[SETTINGS]:
            self.read()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.socket.close()

    def send(self, *frames: bytes) -> None:
        """What is written after the other side has given up is lost."""
        try:
            self.socket.sendall(b"".join(frames))
        except OSError:
            self.ended = True

    def open(self, stream: int, fields: dict[str, str], *, end: bool = False) -> None:
        self.window[stream] = self._initial
        self.send(frame(HEADERS, END_HEADERS | (END_STREAM if end else 0), stream, header_block(fields)))

    def send_body(self, stream: int, num_bytes: int, start: bytes = b"") -> int:
        """Send a body as flow control allows, until it is sent or answered. Returns the bytes that were sent."""
        left, piece = num_bytes, start + bytes(_FRAME_BYTES - len(start))
        while left > 0 and not self.ended and not self.seen[HEADERS] and not self.seen[RST_STREAM]:
            size = min(left, self.window[0], self.window[stream], _FRAME_BYTES)
            if size == 0:
                self.read()
                continue
            self.send(frame(DATA, END_STREAM if size == left else 0, stream, piece[:size]))
            piece = bytes(_FRAME_BYTES)
            self.window[0] -= size
            self.window[stream] -= size
            left -= size
        return num_bytes - left

    def read(self) -> None:
        """Take what has come, or wait for it."""
        try:
            data = self.socket.recv(65_536)
        except OSError:
            data = b""
        self.ended = self.ended or not data
        self._buffer += data
        while len(self._buffer) >= 9 and len(self._buffer) >= 9 + int.from_bytes(self._buffer[:3], "big"):
            size = int.from_bytes(self._buffer[:3], "big")
            kind, flags = self._buffer[3], self._buffer[4]
            stream = int.from_bytes(self._buffer[5:9], "big")
            self._take(kind, flags, stream, self._buffer[9 : 9 + size])
            self._buffer = self._buffer[9 + size :]

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        self.seen[kind] += 1
        if kind == HEADERS and not self.first_headers:
            self.first_headers = payload
        if kind == DATA:
            self.body += payload
        if kind == RST_STREAM or (kind in (DATA, HEADERS) and flags & END_STREAM):
            self.num_over += 1
        if kind == WINDOW_UPDATE:
            self.window[stream] = self.window.get(stream, self._initial) + int.from_bytes(payload, "big")
        elif kind == SETTINGS and not flags & ACK:
            for place in range(0, len(payload), 6):
                name, value = struct.unpack("!HI", payload[place : place + 6])
                if name == 4:  # SETTINGS_INITIAL_WINDOW_SIZE
                    self._initial = value
            self.send(frame(SETTINGS, ACK, 0))
