"""Many images in a request: a form or a tar in, a line of JSON for each out."""

from __future__ import annotations

import io
import json
import socket
import tarfile
import threading
from http.client import HTTPConnection
from typing import Any

import pytest
from example_packages import COLOURS, coloured
from served_bento import Served
from serving_platform import ask

PATH = "/v1/models/colours/classify/batch"
NAMES = [COLOURS[number % 3] for number in range(40)]
IMAGES = {f"folder/{number}-{name}.png": coloured(name, number) for number, name in enumerate(NAMES)}


END_OF_TAR = 512 + sum(512 + len(data) + -len(data) % 512 for data in IMAGES.values())
"""Where the last image ends: a folder and the images, a header of one block before each."""


def form(files: dict[str, bytes]) -> tuple[bytes, str]:
    parts = [b'--edge\r\nContent-Disposition: form-data; name="note"\r\n\r\nnot a file\r\n']
    parts += [
        f'--edge\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n\r\n'.encode() + data + b"\r\n"
        for name, data in files.items()
    ]
    return b"".join(parts) + b"--edge--\r\n", "multipart/form-data; boundary=edge"


def tar(files: dict[str, bytes], kind: int = tarfile.PAX_FORMAT) -> tuple[bytes, str]:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=kind) as archive:
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return file.getvalue(), "application/x-tar"


def lines(served: Served, body: bytes, content_type: str, path: str = PATH, *, step: int = 0) -> list[dict[str, Any]]:
    """The answer's lines. With a step, the body is sent in chunks of so many bytes."""
    connection = HTTPConnection("127.0.0.1", served.port, timeout=30)
    try:
        sent = (body[place : place + step] for place in range(0, len(body), step)) if step else body
        connection.request("POST", path, sent, {"Content-Type": content_type}, encode_chunked=bool(step))
        response = connection.getresponse()
        assert response.status == 200, response.read()
        assert response.getheader("content-type") == "application/x-ndjson"
        return [json.loads(line) for line in response.read().splitlines()]
    finally:
        connection.close()


def long_names(files: dict[str, bytes]) -> dict[str, bytes]:
    return {f"{'very-' * 40}long-{name}-ü": data for name, data in files.items()}


@pytest.mark.parametrize("step", [0, 7, 5000])
@pytest.mark.parametrize(
    ("files", "sent"),
    [
        (IMAGES, form(IMAGES)),
        (IMAGES, tar(IMAGES)),
        (long_names(IMAGES), tar(long_names(IMAGES))),
        (long_names(IMAGES), tar(long_names(IMAGES), tarfile.GNU_FORMAT)),
    ],
    ids=["form", "tar", "pax", "gnu"],
)
def test_every_image_has_its_line_in_order(
    served: Served, files: dict[str, bytes], sent: tuple[bytes, str], step: int
) -> None:
    found = lines(served, *sent, step=step)
    assert [line["index"] for line in found] == list(range(len(files)))
    assert [line["name"] for line in found] == list(files)
    assert [line["predictions"][0]["class_name"] for line in found] == NAMES
    assert {line["package_digest"] for line in found} == {served.package.digest}


@pytest.mark.parametrize("pack", [form, tar])
def test_one_bad_image_does_not_spoil_the_rest(served: Served, pack: Any) -> None:
    files = {"a": coloured("red"), "b": b"no image", "c": b"", "d": b"\0" * 1_000_001, "e": coloured("blue")}
    found = lines(served, *pack(files), "/v1/classify/batch?top_k=1")
    assert [line.get("reason") for line in found] == [None, "not_an_image", "empty", "too_many_bytes", None]
    assert [line["name"] for line in found] == list(files)
    assert [len(line.get("predictions", [])) for line in found] == [1, 0, 0, 0, 1]


def test_answers_come_while_images_are_still_arriving(served: Served) -> None:
    body, content_type = tar(IMAGES)
    half = len(body) // 2
    with socket.create_connection(("127.0.0.1", served.port), timeout=20) as connection:
        head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body[:half])
        received = b""
        while received.count(b'"predictions"') < 5:
            received += connection.recv(65536)
        connection.sendall(body[half:])
        while b"\r\n0\r\n\r\n" not in received:
            received += connection.recv(65536)
    assert received.count(b'"predictions"') == len(IMAGES)


@pytest.mark.parametrize(
    ("body", "content_type", "status", "reason"),
    [
        (b"", "application/x-tar", 400, "bad_batch"),
        (coloured("red"), "", 400, "bad_batch"),
        (b"x" * 2000, "application/x-tar", 400, "bad_batch"),
        (b"", "multipart/form-data; boundary=edge", 400, "bad_multipart"),
        (*form({}), 400, "bad_batch"),
        (*tar({}), 400, "bad_batch"),
        (b"nonsense", "multipart/form-data; boundary=edge", 400, "bad_multipart"),
        (b"--edge\r\n", "multipart/form-data", 400, "bad_multipart"),
        (
            b"--edge\r\nContent-Disposition: " + b"x" * 20_000 + b"\r\n\r\n\r\n--edge--\r\n",
            "multipart/form-data; boundary=edge",
            400,
            "bad_multipart",
        ),
        (tar(IMAGES)[0][:700], "application/x-tar", 400, "body_cut_off"),
    ],
)
def test_what_is_no_batch_is_a_problem(
    served: Served, body: bytes, content_type: str, status: int, reason: str
) -> None:
    found, problem = ask(served.port, PATH, body, {"Content-Type": content_type})
    assert (found, problem["reason"]) == (status, reason), problem


@pytest.mark.parametrize(
    ("body", "content_type", "reason"),
    [
        (tar(IMAGES)[0][:20_000], "application/x-tar", "body_cut_off"),
        (form(IMAGES)[0][:-8], "multipart/form-data; boundary=edge", "bad_multipart"),
        (tar(IMAGES)[0][:END_OF_TAR] + b"x" * 512, "application/x-tar", "bad_batch"),
    ],
)
def test_what_breaks_off_ends_with_a_problem(served: Served, body: bytes, content_type: str, reason: str) -> None:
    *good, last = lines(served, body, content_type)
    assert good
    assert all("predictions" in line for line in good)
    assert (last["reason"], last["name"], last["index"]) == (reason, None, len(good))


def test_too_many_bytes_and_too_many_requests_are_refused(served: Served) -> None:
    status, problem = ask(served.port, PATH, b"", {"Content-Length": str(65 * 1024 * 1024)})
    assert (status, problem["reason"]) == (413, "too_many_bytes")
    body, content_type = tar({"a": coloured("red")})
    head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
    waiting = []
    for _ in range(4):
        connection = socket.create_connection(("127.0.0.1", served.port), timeout=20)
        connection.sendall(head.encode() + body[:4096])
        assert b"200 OK" in connection.recv(100)
        waiting.append(connection)
    assert ask(served.port, PATH, body)[0] == 503
    for connection in waiting:
        connection.close()
    answered = threading.Event()
    for _ in range(200):
        if ask(served.port, PATH, b"")[0] == 400:
            answered.set()
            break
    assert answered.is_set()
