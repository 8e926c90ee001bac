"""RFC 6455 by the frame, through the gateway and straight at a process: what it allows works, what it forbids fails.

The sections are those of Autobahn's test suite (`wstest` needs Python 2), 1 to 7: framing, pings and pongs, reserved
bits, opcodes, fragments, UTF-8, the closing handshake; 9 (limits) is `test_bodies.py`; 12 and 13 are of compression,
which is never agreed on.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import pytest
from example_packages import coloured
from front_door import Door
from websocket_frames import BINARY, CLOSE, CONTINUED, PATH, PING, PONG, TEXT, connected, frame, opened, read_frames

IMAGE = coloured("red", 1)
GOOD, EMPTY, NO_IMAGE, BAD_TEXT = 200, 400, 415, b"\xce\xba\xe1\xbd\xb9\xf4\x90\x80\x80"
NO_CODE = 1005
"""A close frame without a code."""

Seen = list[int | bytes]
"""Statuses of answers, payloads of pongs, and at the end the code of a close frame (below zero)."""


@dataclass(frozen=True)
class Case:
    name: str
    sent: bytes
    seen: Seen
    deviates: str = ""
    """What RFC 6455 would rather have."""
    goes_on: bool = False
    """Until a closing handshake of ours."""

    def __str__(self) -> str:
        return self.name


def closed(code: int | None = None, reason: bytes = b"") -> bytes:
    return frame(CLOSE, (code.to_bytes(2, "big") if code is not None else b"") + reason)


def allowed(name: str, *frames: bytes, seen: Seen) -> Case:
    return Case(name, b"".join(frames), [*seen, -1000], goes_on=True)


def fails(name: str, *frames: bytes, code: int = 1002, seen: Seen | None = None, deviates: str = "") -> Case:
    return Case(name, b"".join(frames), [*(seen or []), -code], deviates)


HALF = len(IMAGE) // 2
PIECES = (frame(BINARY, IMAGE[:HALF], final=False), frame(CONTINUED, IMAGE[HALF:]))


def _framing() -> Iterator[Case]:
    for size in (1, 125, 126, 127, 128, 65_535, 65_536):
        yield allowed(f"1 message of {size}", frame(BINARY, bytes(size)), seen=[NO_IMAGE])
    yield allowed("1 empty message", frame(BINARY), seen=[EMPTY])
    yield allowed("1 mask of zeros", frame(BINARY, IMAGE, mask=bytes(4)), seen=[GOOD])
    for wide in (2, 8):
        case = allowed(f"1 length in {wide} bytes where 1 does", frame(BINARY, bytes(5), length=wide), seen=[NO_IMAGE])
        yield replace(case, deviates="1002: a length is written as short as can be (5.2); harmless")
    yield fails("1 length with the highest bit", b"\x82\xff" + b"\xff" * 8, code=1009, deviates="1002 (5.2)")
    yield fails("1 unmasked", frame(BINARY, IMAGE, mask=None))
    yield fails("1 unmasked ping", frame(PING, mask=None))
    yield fails("1 answered before it fails", frame(PING, b"a"), frame(BINARY, IMAGE, mask=None), seen=[b"a"])


def _pings() -> Iterator[Case]:
    for payload in (b"", b"Hello", b"\x00\xff\xfe\xfd\xfc\xfb\x00\xff", b"\xfe" * 125):
        yield allowed(f"2 ping of {len(payload)}", frame(PING, payload), seen=[payload])
    yield allowed("2 ten pings", *(frame(PING, b"%d" % one) for one in range(10)), seen=[b"%d" % n for n in range(10)])
    yield allowed("2 pong that nobody asked for", frame(PONG, b"x"), frame(BINARY, IMAGE), seen=[GOOD])
    yield allowed("2 pong, then ping", frame(PONG), frame(PING, b"y"), seen=[b"y"])
    for opcode in (PING, PONG, CLOSE):
        yield fails(f"2 control {opcode} of 126", frame(opcode, bytes(126)))
        yield fails(f"2 control {opcode} of 65,536", frame(opcode, bytes(65_536)))
        yield fails(f"5 control {opcode} in fragments", frame(opcode, b"", final=False))


def _reserved() -> Iterator[Case]:
    for rsv in range(1, 8):
        yield fails(f"3 reserved bits {rsv}", frame(BINARY, IMAGE, rsv=rsv))
    yield fails("3 reserved bit of a ping", frame(PING, b"x", rsv=4))
    yield fails("3 reserved bit of a close", frame(CLOSE, b"\x03\xe8", rsv=1))
    for opcode in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15):
        yield fails(f"4 opcode {opcode}", frame(opcode, b"x"))
        yield fails(f"4 opcode {opcode} without payload", frame(opcode))


def _fragments() -> Iterator[Case]:
    yield allowed("5 two fragments", *PIECES, seen=[GOOD])
    yield allowed("5 a ping between", PIECES[0], frame(PING, b"p"), PIECES[1], seen=[b"p", GOOD])
    yield allowed("5 a pong between", PIECES[0], frame(PONG, b"p"), PIECES[1], seen=[GOOD])
    bytewise = [frame(CONTINUED, IMAGE[at : at + 1], final=False) for at in range(1, len(IMAGE))]
    every = [frame(BINARY, IMAGE[:1], final=False), *bytewise, frame(CONTINUED)]
    yield allowed("5 a byte a fragment, the last empty", *every, seen=[GOOD])
    yield allowed("5 empty fragments", frame(BINARY, final=False), frame(CONTINUED), seen=[EMPTY])
    yield allowed("5 two messages", *PIECES, *PIECES, seen=[GOOD, GOOD])
    for final in (True, False):
        yield fails(f"5 continuation of nothing, final {final}", frame(CONTINUED, b"x", final=final))
    yield fails("5 continuation after a whole message", frame(BINARY, IMAGE), frame(CONTINUED, b"x"))
    for opcode in (TEXT, BINARY):
        yield fails(f"5 message {opcode} within a message", PIECES[0], frame(opcode, b"x"))
    yield fails("5 close within a message", PIECES[0], closed(1000), deviates="1000: a close may come there (5.4)")


def _texts() -> Iterator[Case]:
    """What is no UTF-8 is said to be none; other texts are no images."""
    good = "κόσμε€".encode()
    yield fails("6 text", frame(TEXT, good), code=1003)
    yield fails("6 empty text", frame(TEXT), code=1003)
    pieces = [frame(CONTINUED, good[at : at + 1], final=False) for at in range(1, len(good))]
    yield fails("6 a byte a fragment", frame(TEXT, good[:1], final=False), *pieces, frame(CONTINUED), code=1003)
    bad = (BAD_TEXT, b"\xce", b"\xff", b"\xc0\xaf", b"\xed\xa0\x80", b"\xf8\x88\x80\x80\x80", b"a\x80")
    for text in bad:
        yield fails(f"6 no UTF-8 {text.hex()}", frame(TEXT, text), code=1007)
    halves = frame(TEXT, BAD_TEXT[:5], final=False), frame(CONTINUED, BAD_TEXT[5:])
    yield fails("6 no UTF-8 in fragments", *halves, code=1007)


def _closes() -> Iterator[Case]:
    yield fails("7 close without a code", closed(), code=NO_CODE)
    yield fails("7 close of one byte", frame(CLOSE, b"\x03"))
    for code in (1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3999, 4000, 4999):
        yield fails(f"7 code {code}", closed(code), code=code)
    for code in (0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65_535):
        yield fails(f"7 code {code}", closed(code))
    yield fails("7 longest reason", closed(1000, b"a" * 123), code=1000)
    yield fails("7 reason too long", closed(1000, b"a" * 124))
    yield fails("7 reason that is no UTF-8", closed(1000, BAD_TEXT), code=1007)
    after = closed(1000), frame(PING, b"x"), frame(BINARY, IMAGE), closed(1001)
    yield fails("7 nothing after a close counts", *after, code=1000)


CASES = [case for part in (_framing, _pings, _reserved, _fragments, _texts, _closes) for case in part()]


@pytest.fixture(params=["gateway", "process"], scope="module")
def port(request: pytest.FixtureRequest, door: Door) -> int:
    return door.port if request.param == "gateway" else door.served.port


def outcome(port: int, case: Case) -> tuple[Seen, bytes]:
    """What came back, and what came after the close."""
    seen: Seen = []
    with connected(port) as connection:
        connection.sendall(case.sent)
        frames = read_frames(connection, len(case.seen) - case.goes_on)
        if case.goes_on:
            connection.sendall(closed(1000))
            frames += read_frames(connection, 1)
        for opcode, payload in frames:
            if opcode == TEXT:
                seen.append(json.loads(payload).get("status", GOOD))
            elif opcode == CLOSE:
                seen.append(-int.from_bytes(payload[:2], "big") if payload else -NO_CODE)
                payload[2:].decode()
            else:
                assert opcode == PONG
                seen.append(payload)
        try:
            return seen, connection.recv(1)
        except ConnectionResetError:
            return seen, b""


@pytest.fixture(scope="module")
def outcomes(port: int) -> dict[str, tuple[Seen, bytes]]:
    """All at once: Envoy leaves a client a second to close before it does."""
    with ThreadPoolExecutor(16) as clients:
        return dict(zip(map(str, CASES), clients.map(lambda case: outcome(port, case), CASES), strict=True))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_frames(door: Door, outcomes: dict[str, tuple[Seen, bytes]], case: Case) -> None:
    assert outcomes[case.name] == (case.seen, b"")
    assert "Traceback" not in door.served.log.read_text()


def test_bytes_one_by_one(port: int) -> None:
    """However the network cuts it."""
    with connected(port) as connection:
        for byte in frame(PING, b"p") + frame(BINARY, IMAGE):
            connection.sendall(bytes([byte]))
        (_, pong), (_, answer) = read_frames(connection, 2)
        connection.sendall(closed(1000))
        ((_, code),) = read_frames(connection, 1)
    assert (pong, json.loads(answer)["predictions"][0]["class_name"], code) == (b"p", "red", b"\x03\xe8")


HANDSHAKES = {
    "version 12": ({"Sec_WebSocket_Version": "12"}, 426),
    "no version": ({"Sec_WebSocket_Version": None}, 426),
    "two versions": ({"Sec_WebSocket_Version": "13, 12"}, 426),
    "no key": ({"Sec_WebSocket_Key": None}, 400),
    "empty key": ({"Sec_WebSocket_Key": ""}, 400),
    "short key": ({"Sec_WebSocket_Key": "c2hvcnQ="}, 400),
    "key that is no base64": ({"Sec_WebSocket_Key": "dGhlIHNhbXBsZSBub25jZQ=!"}, 400),
}


@pytest.mark.parametrize("name", HANDSHAKES)
def test_handshakes(door: Door, port: int, name: str) -> None:
    changes, status = HANDSHAKES[name]
    connection, head = opened(port, **changes)
    with connection:
        assert int(head.split()[1]) == status, head
        assert b"content-type: application/problem+json" in head.lower()
        assert (b"sec-websocket-version: 13" in head.lower()) == (status == 426)
        assert json.loads(connection.recv(65_536))["status"] == status
    assert "Traceback" not in door.served.log.read_text()


@pytest.mark.parametrize(
    ("start", "changes"),
    [
        (f"GET {PATH} HTTP/1.1", {"Upgrade": "h2c"}),
        (f"GET {PATH} HTTP/1.1", {"Upgrade": None}),
        (f"GET {PATH} HTTP/1.1", {"Connection": "close"}),
        (f"POST {PATH} HTTP/1.1", {"Content_Length": "0"}),
        (f"GET {PATH} HTTP/1.0", {}),
        ("GET /v1/models/colours/classify HTTP/1.1", {}),
    ],
    ids=["another-upgrade", "no-upgrade", "no-connection", "post", "http-1.0", "no-stream"],
)
def test_what_is_no_handshake_opens_nothing(port: int, start: str, changes: dict[str, str | None]) -> None:
    connection, head = opened(port, start, **changes)
    connection.close()
    assert 400 <= int(head.split()[1]) < 500, head


def test_extensions_and_protocols_are_not_agreed_on(port: int) -> None:
    connection, head = opened(
        port, Sec_WebSocket_Extensions="permessage-deflate; client_max_window_bits", Sec_WebSocket_Protocol="chat"
    )
    connection.close()
    assert head.startswith(b"HTTP/1.1 101")
    assert b"sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo=" in head.lower()
    assert b"sec-websocket-extensions" not in head.lower()
    assert b"sec-websocket-protocol" not in head.lower()
