"""A client that sends and does not read is held back and, in the end, given up."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn
from serving_platform import wait_until
from websocket_frames import PING, connected, head_of

from bentos.kit import frames
from pipelines.local.ports import free_port

PINGS = (head_of(125, opcode=PING) + bytes(125)) * 1000


class Impatient(frames.BoundedFrames):
    """Waits a fifth of a second where others wait ten."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.close_timeout = 0.2


async def listen(scope: Any, receive: Any, send: Any) -> None:
    """Takes messages and says nothing."""
    while (message := await receive())["type"] != "websocket.disconnect":
        if message["type"] == "websocket.connect":
            await send({"type": "websocket.accept"})


@contextlib.contextmanager
def listening(**options: Any) -> Iterator[uvicorn.Server]:
    config = uvicorn.Config(listen, port=free_port(), ws=Impatient, lifespan="off", log_level="error", **options)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_until(lambda: server.started)
        yield server
    finally:
        server.should_exit = server.force_exit = True
        thread.join()


def blocked(server: uvicorn.Server) -> socket.socket:
    """A connection that has sent pings until nobody took them."""
    connection = connected(server.config.port, "/")
    connection.settimeout(1)
    with pytest.raises(TimeoutError):
        connection.sendall(PINGS * 1000)
    return connection


def test_who_does_not_read_is_not_read_from(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many pings there may be, what is kept of their pongs is bounded; and it is read on when they are read."""
    monkeypatch.setattr(frames, "_MAX_FRAMES", 10**9)
    with listening(ws_ping_interval=None) as server, blocked(server) as connection:
        (frame,) = server.server_state.connections
        assert frame.transport.get_write_buffer_size() < 256 * 1024  # type: ignore[union-attr]
        with contextlib.suppress(TimeoutError):  # there is nothing more
            while connection.recv(2**20):
                pass
        connection.sendall(PINGS)
        assert connection.recv(1)


def test_who_never_reads_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also the bytes that wait for it: the connection does not stay until they are sent."""
    monkeypatch.setattr(frames, "_MAX_FRAMES", 10**9)
    with listening(ws_ping_interval=0.5, ws_ping_timeout=2) as server, blocked(server):
        assert server.server_state.connections
        wait_until(lambda: not server.server_state.connections, 10)
