"""WebSocket: images in, answers out, in order."""

from __future__ import annotations

import json
from http.client import HTTPConnection
from socket import SHUT_RDWR
from typing import Any

import pytest
from example_packages import COLOURS, coloured
from served_bento import Served
from serving_platform import ask, wait_until
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect


def opened(served: Served, path: str = "/v1/stream", **headers: str) -> ClientConnection:
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    return connect(
        f"ws://127.0.0.1:{served.port}{path}",
        additional_headers=given,
        max_size=None,
        close_timeout=1,  # a client that has not read what came hears no goodbye
    )


def received(socket: ClientConnection) -> dict[str, Any]:
    return dict(json.loads(socket.recv(timeout=20)))


@pytest.mark.parametrize("path", ["/v1/stream", "/v1/models/colours/stream"])
def test_answers_come_in_order_and_are_those_of_http(served: Served, path: str) -> None:
    names = [COLOURS[number % 3] for number in range(30)]
    images = [coloured(name, number) for number, name in enumerate(names)]
    with opened(served, path, X_Request_ID="ws") as socket:
        for image in images:
            socket.send(image)
        answers = [received(socket) for _ in images]
    assert [answer["index"] for answer in answers] == list(range(30))
    assert [answer["predictions"][0]["class_name"] for answer in answers] == names
    assert answers[7]["request_id"] == "ws/7"
    assert answers[7]["package_digest"] == served.package.digest
    _, by_http = ask(served.port, "/v1/classify", images[7])
    for ours, theirs in zip(answers[7]["predictions"], by_http["predictions"], strict=True):
        assert ours["label"] == theirs["label"]
        assert ours["probability"] == pytest.approx(theirs["probability"], abs=1e-5)


def test_a_bad_image_is_a_problem_in_its_place(served: Served) -> None:
    with opened(served, "/v1/stream?top_k=1") as socket:
        for image in (coloured("red"), b"no image", b"", coloured("blue")):
            socket.send(image)
        answers = [received(socket) for _ in range(4)]
    assert answers[0]["predictions"][0]["class_name"] == "red"
    assert [answer.get("reason") for answer in answers] == [None, "not_an_image", "empty", None]
    assert answers[1]["status"] == 415
    assert len(answers[3]["predictions"]) == 1


def test_a_client_that_does_not_read_is_held_back(served: Served) -> None:
    """It may send as much as it likes: others are answered meanwhile, and it loses nothing."""
    with opened(served) as socket:
        for number in range(200):
            socket.send(coloured("green", number))
        assert ask(served.port, "/v1/classify", coloured("red"))[0] == 200
        assert [received(socket)["index"] for _ in range(200)] == list(range(200))


@pytest.mark.parametrize(
    ("path", "frame", "code"),
    [
        ("/v1/stream", "a text", 1003),
        ("/v1/stream", b"\0" * 1_100_000, 1009),
        ("/v1/models/other/stream", None, 4404),
        ("/v1/stream?top_k=0", None, 4400),
    ],
)
def test_what_it_does_not_take_ends_the_stream_with_a_code(
    served: Served, path: str, frame: str | bytes | None, code: int
) -> None:
    with opened(served, path) as socket:
        if frame is not None:
            socket.send(frame)
        with pytest.raises(ConnectionClosed) as caught:
            socket.recv(timeout=20)
    assert caught.value.rcvd is not None
    assert caught.value.rcvd.code == code


@pytest.mark.parametrize("abruptly", [False, True])
def test_a_client_that_goes_away_leaves_nothing_behind(served: Served, abruptly: bool) -> None:
    for _ in range(5):
        with opened(served) as socket:
            for number in range(100):
                socket.send(coloured("red", number))
            if abruptly:
                socket.socket.shutdown(SHUT_RDWR)
    wait_until(lambda: _open_streams(served) == 0)
    assert ask(served.port, "/v1/classify", coloured("red"))[0] == 200
    assert "Traceback" not in served.log.read_text()


def _open_streams(served: Served) -> float:
    connection = HTTPConnection("127.0.0.1", served.port, timeout=20)
    try:
        connection.request("GET", "/metrics")
        lines = connection.getresponse().read().decode().splitlines()
    finally:
        connection.close()
    return float(next(line.split()[-1] for line in lines if line.startswith("darkroom_open_streams ")))
