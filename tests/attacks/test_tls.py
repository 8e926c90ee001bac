"""Eavesdroppers: every protocol by TLS, a certificate that changes while it serves, and plain HTTP for nobody else."""

from __future__ import annotations

import json
import shutil
import socket
import ssl
import subprocess
import warnings
from collections.abc import Iterator
from dataclasses import replace
from http.client import HTTPSConnection
from pathlib import Path

import grpc
import pytest
from example_packages import coloured
from front_door import PATH, Door, front_door
from homes import settings_under
from request_bodies import INFER, infer_call
from serving_platform import ask, wait_until
from websockets.sync.client import connect

from bentos.classifier.oip import inference_pb2 as messages
from pipelines.core.model_package import ModelPackage
from pipelines.local import certificates


def trusting(door: Door) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=certificates.authority(door.settings))


def ask_by_tls(door: Door, body: bytes, host: str = "localhost") -> tuple[int, dict]:  # type: ignore[type-arg]
    connection = HTTPSConnection(host, door.tls_port, context=trusting(door), timeout=20)
    try:
        connection.request("POST", PATH, body)
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def serial_of(door: Door) -> int:
    with (
        socket.create_connection(("127.0.0.1", door.tls_port), timeout=10) as plain,
        trusting(door).wrap_socket(plain, server_hostname="localhost") as secure,
    ):
        certificate = secure.getpeercert()
        assert certificate is not None
        return int(str(certificate["serialNumber"]), 16)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_http_by_tls_answers_as_without(door: Door, host: str) -> None:
    status, answer = ask_by_tls(door, coloured("green", 3), host)
    assert (status, answer["predictions"]) == (200, ask(door.port, PATH, coloured("green", 3))[1]["predictions"])


@pytest.mark.parametrize("protocol", ["--http1.1", "--http2"])
def test_curl_by_tls(door: Door, protocol: str, tmp_path: Path) -> None:
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("no curl on this machine")
    (tmp_path / "image.png").write_bytes(coloured("blue"))
    done = subprocess.run(
        [
            *(curl, "-sS", protocol, "--cacert", str(certificates.authority(door.settings))),
            *("--data-binary", f"@{tmp_path / 'image.png'}", f"https://localhost:{door.tls_port}{PATH}?top_k=1"),
        ],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["predictions"][0]["class_name"] == "blue"


def test_calls_by_tls(door: Door) -> None:
    credentials = grpc.ssl_channel_credentials(certificates.authority(door.settings).read_bytes())
    with grpc.secure_channel(f"localhost:{door.tls_port}", credentials) as channel:
        answer = channel.unary_unary(INFER)(infer_call(coloured("red")), timeout=20)
    assert messages.ModelInferResponse.FromString(answer).model_name == "colours"


def test_streams_by_tls(door: Door) -> None:
    with connect(f"wss://localhost:{door.tls_port}/v1/models/colours/stream", ssl=trusting(door)) as stream:
        stream.send(coloured("red"))
        assert json.loads(stream.recv(timeout=20))["predictions"][0]["class_name"] == "red"


@pytest.mark.parametrize(
    ("offered", "spoken"), [(["h2", "http/1.1"], "h2"), (["http/1.1"], "http/1.1"), (["spdy/1"], None)]
)
def test_the_protocol_is_agreed_upon_in_the_handshake(door: Door, offered: list[str], spoken: str | None) -> None:
    context = trusting(door)
    context.set_alpn_protocols(offered)
    with (
        socket.create_connection(("127.0.0.1", door.tls_port), timeout=10) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as secure,
    ):
        assert secure.selected_alpn_protocol() == spoken
        assert secure.version() == "TLSv1.3"


def test_old_protocols_strangers_and_plain_text_are_refused(door: Door) -> None:
    old = trusting(door)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        old.minimum_version = ssl.TLSVersion.TLSv1
        old.maximum_version = ssl.TLSVersion.TLSv1_1
    old.set_ciphers("ALL:@SECLEVEL=0")
    # Who does not know our authority does not trust what it signs.
    for context in (old, ssl.create_default_context()):
        with (
            socket.create_connection(("127.0.0.1", door.tls_port), timeout=10) as plain,
            pytest.raises(ssl.SSLError),
        ):
            context.wrap_socket(plain, server_hostname="localhost")
    with socket.create_connection(("127.0.0.1", door.tls_port), timeout=10) as plain:
        plain.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert not plain.recv(4096).startswith(b"HTTP/1.1 200")


def test_a_new_certificate_is_taken_without_a_restart(door: Door) -> None:
    before = serial_of(door)
    door.settings.tls_files[0].unlink()
    certificates.ensure(door.settings)
    wait_until(lambda: _serial_or_none(door) not in (None, before))
    assert ask_by_tls(door, coloured("red"))[0] == 200


def _serial_or_none(door: Door) -> int | None:
    try:
        return serial_of(door)
    except ssl.SSLError:  # still the old one, which the new authority did not sign
        return None


@pytest.fixture
def open_door(bento: Path, package: ModelPackage, tmp_path: Path) -> Iterator[Door]:
    """Open to other machines, with a certificate that somebody mounted."""
    settings = settings_under(tmp_path / "home")
    certificates.ensure(settings)
    mounted = tmp_path / "mounted"
    mounted.mkdir()
    for name in ("tls.crt", "tls.key"):
        shutil.copy(settings.tls_files[0], mounted / name)
    files = {"tls_certificate": mounted / "tls.crt", "tls_key": mounted / "tls.key"}
    with front_door(replace(settings, gateway_host="0.0.0.0", **files), bento, package) as found:  # type: ignore[arg-type]
        yield found


def test_beyond_loopback_there_is_tls_only(open_door: Door) -> None:
    """127.0.0.2 is this machine too, but not the address on which plain HTTP listens."""
    assert ask(open_door.port, PATH, coloured("red"))[0] == 200
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", open_door.port), timeout=5)
    with socket.create_connection(("127.0.0.2", open_door.tls_port), timeout=5):
        assert ask_by_tls(open_door, coloured("red"))[0] == 200


def test_a_mounted_certificate_that_is_renewed_is_taken(open_door: Door) -> None:
    """Renamed into its folder, the key last, as by `install` or a mounted secret."""
    before = serial_of(open_door)
    own = replace(open_door.settings, tls_certificate=None, tls_key=None)
    own.tls_files[0].unlink()
    certificates.ensure(own)
    for path in open_door.settings.tls_files:
        beside = path.with_name(f".{path.name}.new")
        shutil.copy(own.tls_files[0], beside)
        beside.rename(path)
    wait_until(lambda: _serial_or_none(open_door) not in (None, before))
