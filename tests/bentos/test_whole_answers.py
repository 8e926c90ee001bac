"""What is written to a connection for one answer, piece by piece."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

import pytest
from uvicorn import Config
from uvicorn.server import ServerState

from bentos.kit.heads import BoundedHeads
from bentos.kit.whole_answers import WholeAnswers

LENGTH = (b"content-length", b"4")


class Wire:
    """A transport that remembers."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.closed = False

    def write(self, data: bytes) -> None:
        assert not self.closed
        self.pieces.append(data)

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def get_extra_info(self, _name: str) -> None:
        return None


class Flow:
    write_paused = False


def start(*headers: tuple[bytes, bytes]) -> dict[str, Any]:
    return {"type": "http.response.start", "status": 200, "headers": list(headers)}


def body(data: bytes, *, more: bool = False) -> dict[str, Any]:
    return {"type": "http.response.body", "body": data, "more_body": more}


def answered(messages: Sequence[dict[str, Any]], *, method: str = "GET", keep_alive: bool = True) -> Wire:
    wire = Wire()

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        for message in messages:
            await send(message)

    async def work() -> None:
        logger = logging.getLogger("test")
        await WholeAnswers(
            scope={"type": "http", "method": method, "headers": []},  # type: ignore[arg-type]
            transport=wire,  # type: ignore[arg-type]
            flow=Flow(),  # type: ignore[arg-type]
            logger=logger,
            access_logger=logger,
            access_log=False,
            default_headers=[],
            message_event=asyncio.Event(),
            expect_100_continue=False,
            keep_alive=keep_alive,
            on_response=lambda: None,
        ).run_asgi(app)

    asyncio.run(work())
    return wire


def test_head_and_body_are_one_piece() -> None:
    wire = answered([start(LENGTH), body(b"body")])
    assert wire.pieces == [b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nbody"]
    assert not wire.closed


def test_an_empty_body_has_its_head() -> None:
    assert answered([start((b"content-length", b"0")), body(b"")]).pieces == [
        b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"
    ]


def test_an_answer_to_head_has_no_body() -> None:
    wire = answered([start(LENGTH), body(b"body")], method="HEAD")
    assert wire.pieces == [b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n"]


def test_a_connection_that_is_to_end_ends_after_the_answer() -> None:
    wire = answered([start(LENGTH), body(b"body")], keep_alive=False)
    assert b"".join(wire.pieces) == b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\nconnection: close\r\n\r\nbody"
    assert wire.closed


def test_a_body_in_pieces_is_not_waited_for() -> None:
    wire = answered([start(LENGTH), body(b"bo", more=True), body(b"dy")])
    assert wire.pieces == [b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nbo", b"dy"]


def test_a_stream_begins_at_once() -> None:
    wire = answered([start(), body(b"line", more=True), body(b"")])
    assert wire.pieces == [
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
        b"4\r\nline\r\n",
        b"0\r\n\r\n",
    ]


@pytest.mark.parametrize("messages", [[start(LENGTH)], [start(LENGTH), body(b"too long")]])
def test_what_breaks_off_ends_the_connection(messages: list[dict[str, Any]]) -> None:
    wire = answered(messages)
    assert b"".join(wire.pieces).startswith(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n")
    assert wire.closed


def test_uvicorns_protocol_answers_like_this() -> None:
    wire = Wire()

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await send(start(LENGTH))
        await send(body(b"body"))

    async def work() -> None:
        config = Config(app, lifespan="off", server_header=False, date_header=False)
        config.load()
        protocol = BoundedHeads(config=config, server_state=ServerState(), app_state={})
        protocol.connection_made(wire)  # type: ignore[arg-type]
        for number in (1, 2):
            protocol.data_received(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            while len(wire.pieces) < number:
                await asyncio.sleep(0.001)
        protocol.connection_lost(None)

    asyncio.run(asyncio.wait_for(work(), 10))
    assert wire.pieces == [b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nbody"] * 2
