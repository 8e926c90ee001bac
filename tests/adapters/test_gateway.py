"""Envoy's files, taken by a real Envoy in front of small real servers."""

from __future__ import annotations

import contextlib
import itertools
import json
import socket
import struct
import threading
import time
import zlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from pathlib import Path
from random import Random

import grpc
import pytest
from http2_frames import DATA, END_STREAM, GRPC, Connection, frame, request_of
from serving_platform import ask, wait_until

from bentos.classifier.oip import inference_pb2 as messages
from pipelines.adapters.gateway import Backend, Endpoint, Gateway, View, access_log, envoy_argv, write_initial
from pipelines.core.errors import PlatformError
from pipelines.local import certificates
from pipelines.local.process import ManagedProcess, environment
from pipelines.settings import Settings


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        told = {"cluster": self.server.cluster, "path": self.path, "id": self.headers["x-request-id"]}  # type: ignore[attr-defined]
        if self.path == "/":
            told |= {name: self.headers[f"x-darkroom-{name}"] for name in ("deployed", "default")}
        body = json.dumps(told)
        self.send_response(200)
        if self.path == "/readyz":
            self.send_header("x-envoy-upstream-healthchecked-cluster", self.server.cluster)  # type: ignore[attr-defined]
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def do_POST(self) -> None:
        self.server.begun.append(self.path)  # type: ignore[attr-defined]
        self.rfile.read(int(self.headers["content-length"]))
        self.do_GET()

    def log_message(self, *arguments: object) -> None: ...


@contextmanager
def server(cluster: str, begun: list[str] | None = None) -> Iterator[int]:
    """Its port. `begun` gets the paths of bodies before they are read."""
    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    running.cluster = cluster  # type: ignore[attr-defined]
    running.begun = begun if begun is not None else []  # type: ignore[attr-defined]
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield running.server_address[1]
    finally:
        running.shutdown()
        running.server_close()
        thread.join()


@contextmanager
def envoy(settings: Settings) -> Iterator[Gateway]:
    certificates.ensure(settings)
    write_initial(settings)
    process = ManagedProcess("envoy", envoy_argv(settings), environment(settings), settings.home / "envoy.log")
    process.start()
    gateway = Gateway(settings)
    try:
        wait_until(gateway.ready)
        yield gateway
    finally:
        process.stop(3)


@pytest.fixture
def gateway(home_settings: Settings) -> Iterator[Gateway]:
    with envoy(home_settings) as running:
        yield running


NO_MODEL = "no such model; GET / with a key lists those that are deployed"


def view(clusters: dict[str, tuple[int, ...]], routes: dict[str, dict[str, int]] | None = None) -> View:
    """Clusters of ports that stand for gRPC too, and routes of weights by cluster."""
    return View(
        clusters={
            name: tuple(Endpoint(port=port, grpc_port=port) for port in ports) for name, ports in clusters.items()
        },
        routes={
            model: tuple(Backend(cluster=name, version="1", weight=weight) for name, weight in weights.items())
            for model, weights in (routes or {}).items()
        },
    )


def route(gateway: Gateway, clusters: dict[str, tuple[int, ...]], routes: dict[str, dict[str, int]]) -> None:
    """Add the clusters, wait for health, then route."""
    gateway.apply(view(clusters))
    for name, ports in clusters.items():
        wait_until(lambda name=name, ports=ports: gateway.healthy_ports(name) == set(ports))  # type: ignore[misc]
    gateway.apply(view(clusters, routes))


def test_nothing_deployed_is_a_problem_and_not_a_mystery(gateway: Gateway, home_settings: Settings) -> None:
    port = home_settings.gateway_port
    for path in ("/", "/v1/classify", "/v1/models/digits/classify", "/readyz"):
        status, problem = ask(port, path, headers={"X-Request-ID": "mine"})
        assert (status, problem["status"], problem["request_id"]) == (503, 503, "mine")
        assert "deployed yet" in problem["detail"]
    assert ask(port, "/nowhere")[0] == 404


def test_routes_by_model_and_default(gateway: Gateway, home_settings: Settings) -> None:
    port = home_settings.gateway_port
    with server("digits-v1-1") as first, server("clothing-v1-2") as second:
        clusters = {"digits-v1-1": (first,), "clothing-v1-2": (second,)}
        route(gateway, clusters, {"digits": {"digits-v1-1": 100}, "clothing": {"clothing-v1-2": 100}})
        assert ask(port, "/v1/classify", b"x")[1]["cluster"] == "digits-v1-1"
        answer = ask(port, "/v1/models/clothing/classify?top_k=2", b"x")[1]
        assert (answer["cluster"], answer["path"]) == ("clothing-v1-2", "/v1/models/clothing/classify?top_k=2")
        assert ask(port, "/v1/models/clothing/readyz")[1]["path"] == "/readyz"
        status, problem = ask(port, "/v1/models/digit/classify", b"x")
        assert (status, problem["detail"]) == (404, NO_MODEL)
        # Which models there are is for the process to tell, to whoever has a key.
        assert ask(port, "/", headers={"x-darkroom-deployed": "x"})[1] | {"id": ""} == {
            "cluster": "digits-v1-1",
            "path": "/",
            "id": "",
            "deployed": "clothing,digits",
            "default": "digits",
        }
        route(gateway, {"clothing-v1-2": (second,)}, {"clothing": {"clothing-v1-2": 100}})
        answer = ask(port, "/")[1]
        assert (answer["cluster"], answer["deployed"], answer["default"]) == ("clothing-v1-2", "clothing", "-")


def test_the_search_for_similar_images_has_its_own_process(gateway: Gateway, home_settings: Settings) -> None:
    """For every name, deployed or not; the models' own paths are theirs, whatever they are called."""
    port = home_settings.gateway_port
    status, problem = ask(port, "/v1/models/digits/similar", b"x")
    assert (status, "without the search" in problem["detail"]) == (503, True)
    with server("digits-v1-1") as first, server("similar-v1-2") as second, server("similar") as search:
        clusters = {"digits-v1-1": (first,), "similar-v1-2": (second,)}
        routed = view(clusters, {"digits": {"digits-v1-1": 100}, "similar": {"similar-v1-2": 100}})
        gateway.apply(replace(routed, routes={}, similar=search))
        for name, ports in {**clusters, "similar": (search,)}.items():
            wait_until(lambda name=name, ports=ports: gateway.healthy_ports(name) == set(ports))  # type: ignore[misc]
        gateway.apply(replace(routed, similar=search))
        for path in ("/v1/similar", "/v1/models/digits/similar", "/v1/models/not-deployed/similar?top_k=2"):
            assert (ask(port, path, b"x")[1]["cluster"], ask(port, path, b"x")[1]["path"]) == ("similar", path)
        for path in ("/v1/similar/readyz", "/v1/similar/livez", "/v1/similar/metrics"):
            answer = ask(port, path)[1]
            assert (answer["cluster"], answer["path"]) == ("similar", path.removeprefix("/v1/similar"))
        assert ask(port, "/v1/models/similar/classify", b"x")[1]["cluster"] == "similar-v1-2"
        assert ask(port, "/v1/models/digits/similar/of", b"x")[1]["cluster"] == "digits-v1-1"
        assert ask(port, "/v1/similar/of", b"x")[0] == 404


def test_a_request_id_is_kept_to_the_letter(gateway: Gateway, home_settings: Settings) -> None:
    """Envoy would put a trace decision into the 15th letter of a UUID."""
    mine = "f47ac10b-58cc-4372-a567-0e02b2c3d479"
    with server("digits-v1-1") as port:
        route(gateway, {"digits-v1-1": (port,)}, {"digits": {"digits-v1-1": 100}})
        assert ask(home_settings.gateway_port, "/v1/classify", b"x", {"X-Request-ID": mine})[1]["id"] == mine
    wait_until(lambda: mine in access_log(home_settings).read_text())
    line = next(line for line in access_log(home_settings).read_text().splitlines() if mine in line)
    assert json.loads(line)["cluster"] == "digits-v1-1"


def test_a_port_that_belongs_to_somebody_else_is_never_used(gateway: Gateway, home_settings: Settings) -> None:
    with server("digits-v1-1") as mine, server("another") as foreign:
        gateway.apply(view({"digits-v1-1": (mine, foreign)}, {"digits": {"digits-v1-1": 100}}))
        wait_until(lambda: gateway.healthy_ports("digits-v1-1") == {mine})
        answers = [ask(home_settings.gateway_port, "/v1/classify", b"x")[1]["cluster"] for _ in range(10)]
    assert set(answers) == {"digits-v1-1"}


def test_a_large_body_is_refused_by_its_header(gateway: Gateway, home_settings: Settings) -> None:
    with server("digits-v1-1") as port:
        route(gateway, {"digits-v1-1": (port,)}, {"digits": {"digits-v1-1": 100}})
        status, problem = ask(home_settings.gateway_port, "/v1/classify", headers={"content-length": str(2**30)})
        assert (status, problem["title"]) == (413, "Body too large")


def test_a_small_body_is_collected_whatever_its_query_says(gateway: Gateway, home_settings: Settings) -> None:
    """Only what is sent to a batch's own path reaches a process before it is whole."""
    begun: list[str] = []
    collected = ["/v1/classify?x=/batch", "/v1/models/digits/classify?/classify/batch", "/v1/models/digits/x/batch"]
    passed = ["/v1/classify/batch", "/v1/models/digits/classify/batch?top_k=2"]
    with server("digits-v1-1", begun) as port, contextlib.ExitStack() as clients:
        route(gateway, {"digits-v1-1": (port,)}, {"digits": {"digits-v1-1": 100}})
        sent = []
        for path in (*collected, *passed):
            client = socket.create_connection(("127.0.0.1", home_settings.gateway_port), timeout=10)
            sent.append(clients.enter_context(client))
            client.sendall(f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nx".encode())
        wait_until(lambda: set(passed) <= set(begun))
        assert sorted(begun) == sorted(passed)
        for client in sent:
            client.sendall(b"x" * 999)
            assert client.recv(1000).startswith(b"HTTP/1.1 200")
    assert sorted(begun) == sorted([*collected, *passed])


def test_weights_share_the_traffic(gateway: Gateway, home_settings: Settings) -> None:
    with server("a") as first, server("b") as second:
        route(gateway, {"a": (first,), "b": (second,)}, {"digits": {"a": 50, "b": 50}})
        answers = {ask(home_settings.gateway_port, "/v1/classify", b"x")[1]["cluster"] for _ in range(40)}
    assert answers == {"a", "b"}


# --- calls by gRPC -------------------------------------------------------------------------------------------------


@contextmanager
def called(name: str) -> Iterator[Endpoint]:
    """A process whose gRPC methods answer with its name, whatever is called; who watches stays until the end."""
    over = threading.Event()

    def answer(message: bytes, _: grpc.ServicerContext) -> bytes:
        return f"{name} {len(message)}".encode()

    def stay(_: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        context.add_callback(over.set)
        yield name.encode()
        over.wait(30)

    class Any(grpc.GenericRpcHandler):
        def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
            if details.method == WATCH:
                return grpc.unary_stream_rpc_method_handler(stay)
            return grpc.unary_unary_rpc_method_handler(answer)

    running = grpc.server(ThreadPoolExecutor(8), handlers=[Any()])
    grpc_port = running.add_insecure_port("127.0.0.1:0")
    running.start()
    try:
        with server(name) as port:
            yield Endpoint(port=port, grpc_port=grpc_port)
    finally:
        over.set()
        running.stop(None)


def route_calls(
    gateway: Gateway, clusters: Mapping[str, tuple[Endpoint]], routes: Mapping[str, tuple[Backend, ...]]
) -> None:
    """Add the processes, wait until both ports of each are healthy, then route."""
    gateway.apply(View(clusters=clusters))
    for name, (process,) in clusters.items():
        expected = {process.port, process.grpc_port}
        wait_until(lambda name=name, expected=expected: gateway.healthy_ports(name) == expected)  # type: ignore[misc]
    gateway.apply(View(clusters=clusters, routes=routes))


def call(port: int, method: str, message: bytes, **options: object) -> str:
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        return bytes(channel.unary_unary(method)(message, timeout=10, **options)).decode()


def asked(name: str, version: str = "", payload: bytes = b"") -> bytes:
    return messages.ModelInferRequest(
        model_name=name, model_version=version, raw_input_contents=[payload]
    ).SerializeToString()


INFER = "/inference.GRPCInferenceService/ModelInfer"
WATCH = "/grpc.health.v1.Health/Watch"


def test_a_call_goes_to_the_model_and_version_that_it_names(gateway: Gateway, home_settings: Settings) -> None:
    port = home_settings.gateway_port
    with called("digits-v1") as first, called("digits-v2") as second, called("clothing-v1") as other:
        clusters = {"digits-v1": (first,), "digits-v2": (second,), "clothing-v1": (other,)}
        routes = {
            "digits": (
                Backend(cluster="digits-v1", version="1", weight=100),
                Backend(cluster="digits-v2", version="2", weight=0),
            ),
            "clothing": (Backend(cluster="clothing-v1", version="1", weight=100),),
        }
        route_calls(gateway, clusters, routes)

        for payload in (b"", b"x" * 3_000_000):
            for name, version, cluster in (
                ("digits", "", "digits-v1"),
                ("digits", "1", "digits-v1"),
                ("digits", "2", "digits-v2"),
                ("clothing", "", "clothing-v1"),
                ("clothing", "1", "clothing-v1"),
                # Whom nobody serves is for a process to say.
                ("unknown", "", "digits-v1"),
                ("clothing", "9", "clothing-v1"),
                ("", "", "digits-v1"),
                ("no\nheader", "", "digits-v1"),
            ):
                message = asked(name, version, payload)
                assert call(port, INFER, message) == f"{cluster} {len(message)}", (name, version)
        ready = messages.ModelReadyRequest(name="clothing").SerializeToString()
        assert call(port, "/inference.GRPCInferenceService/ModelReady", ready).startswith("clothing-v1")
        # Neither a client's own header nor a message that is none changes the way.
        assert call(port, INFER, asked("clothing"), metadata=[("x-darkroom-model", "digits")]).startswith("clothing")
        for message in (b"", b"\x0a", b"\x0a\xff\xff\xff\xff\xff", b"\x0a\x7fclothing", b"\x08\x01", bytes(300)):
            assert call(port, INFER, message) == f"digits-v1 {len(message)}"
        for method in ("/inference.GRPCInferenceService/ServerLive", "/grpc.health.v1.Health/Check"):
            assert call(port, method, b"") == "digits-v1 0"
        assert ask(port, "/v2/models/digits/versions/2/ready")[1]["cluster"] == "digits-v2"
        assert ask(port, "/v2/models/clothing/infer", b"x")[1]["cluster"] == "clothing-v1"
        assert ask(port, "/v2/health/ready")[1]["cluster"] == "digits-v1"
        with pytest.raises(grpc.RpcError) as caught:
            call(port, "/some.Other/Method", b"")
        assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED


def compressed(message: bytes, encoding: str, level: int = 6, strategy: int = zlib.Z_DEFAULT_STRATEGY) -> bytes:
    packer = zlib.compressobj(level, zlib.DEFLATED, 31 if encoding == "gzip" else 15, 9, strategy)
    return packer.compress(message) + packer.flush()


def call_raw(port: int, encoding: str, packed: bytes) -> str:
    """The answer to a message that is said to be compressed; empty where there is none."""
    with Connection(port) as connection:
        connection.open(1, request_of(INFER, **GRPC, **{"grpc-encoding": encoding}))
        connection.send(frame(DATA, END_STREAM, 1, b"\1" + struct.pack("!I", len(packed)) + packed))
        while not connection.num_over:
            connection.read()
            assert not connection.ended
    return connection.body[5:].decode()


def test_a_compressed_call_goes_to_the_model_that_it_names(gateway: Gateway, home_settings: Settings) -> None:
    """The gateway expands as much of the message as has the name in it, however it was compressed."""
    port, random = home_settings.gateway_port, Random(0)
    with called("digits-v1") as first, called("clothing-v1") as other:
        clusters = {"digits-v1": (first,), "clothing-v1": (other,)}
        routes = {name[:-3]: (Backend(cluster=name, version="1", weight=1),) for name in clusters}
        route_calls(gateway, clusters, routes)

        for by in (grpc.Compression.Gzip, grpc.Compression.Deflate):
            message = asked("clothing", "1", random.randbytes(1_000_000) + bytes(1_000_000))
            assert call(port, INFER, message, compression=by) == f"clothing-v1 {len(message)}"
        ways = [(level, zlib.Z_DEFAULT_STRATEGY) for level in (0, 1, 6, 9)]
        ways += [(6, strategy) for strategy in (zlib.Z_FIXED, zlib.Z_RLE, zlib.Z_HUFFMAN_ONLY)]
        payloads = (b"", random.randbytes(2000), b"clothing" * 100, bytes(200) + random.randbytes(500), bytes(9000))
        every = itertools.product(("gzip", "deflate"), ways, payloads, ("", "1", "7" * 255))
        for encoding, (level, strategy), payload, version in every:
            message = asked("clothing", version, payload)
            answer = call_raw(port, encoding, compressed(message, encoding, level, strategy))
            assert answer == f"clothing-v1 {len(message)}", (encoding, level, strategy)

        packed = compressed(asked("clothing", "1", b"x" * 1000 + random.randbytes(1000)), "deflate")
        began = time.monotonic()
        for number in range(300):
            damaged = bytearray(packed[: random.randrange(len(packed))] if number % 2 else packed)
            for _ in range(4 if damaged else 0):
                damaged[random.randrange(min(200, len(damaged)))] = random.randrange(256)
            call_raw(port, "deflate", bytes(damaged))  # whatever it says, it is answered
        for text in (b"", b"\x78", b"\x78\x9c" + b"\0\0\0\xff\xff" * 3000, b"\x78\x9c" + b"\xff" * 2000):
            call_raw(port, "deflate", text)
            call_raw(port, "gzip", b"\x1f\x8b\x08\0" + bytes(6) + text[2:])
        assert time.monotonic() - began < 30
        for encoding in ("identity", "br", ""):
            call_raw(port, encoding, packed)
        assert call(port, INFER, asked("clothing")).startswith("clothing-v1")


def test_who_watches_takes_no_place_of_who_classifies(
    gateway: Gateway, home_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Anybody may watch. When no more may, calls still come in; and a deployment's end does not wait for them."""
    monkeypatch.setattr(import_module("pipelines.adapters.gateway.config.clusters"), "MAX_HEALTH_CALLS", 3)
    port, backend = home_settings.gateway_port, Backend(cluster="digits-v1", version="1", weight=100)
    with called("digits-v1") as process, grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        route_calls(gateway, {"digits-v1": (process,)}, {"digits": (backend,)})
        watching = [channel.unary_stream(WATCH)(b"", timeout=30) for _ in range(3)]
        assert [next(one) for one in watching] == [b"digits-v1"] * 3
        with pytest.raises(grpc.RpcError) as caught:
            next(channel.unary_stream(WATCH)(b"", timeout=10))
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        assert call(port, INFER, asked("digits")).startswith("digits-v1")
        assert gateway.active_requests("digits-v1") == 0
        for one in watching:
            one.cancel()


def test_a_call_before_anything_is_deployed_is_unavailable(gateway: Gateway, home_settings: Settings) -> None:
    assert gateway.ready()
    with pytest.raises(grpc.RpcError) as caught:
        call(home_settings.gateway_port, INFER, asked("digits"))
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE


# --- files ---------------------------------------------------------------------------------------------------------


def test_a_refused_file_is_an_error_and_changes_nothing(gateway: Gateway, home_settings: Settings) -> None:
    with server("digits-v1-1") as port:
        route(gateway, {"digits-v1-1": (port,)}, {"digits": {"digits-v1-1": 100}})
        good = view({"digits-v1-1": (port,)}, {"digits": {"digits-v1-1": 100}})
        with pytest.raises(PlatformError, match="Envoy refused"):
            gateway.apply(view({"digits-v1-1": (port,)}, {"digits": {"digits-v1-1": -1}}))
        assert ask(home_settings.gateway_port, "/v1/classify", b"x")[0] == 200
        gateway.apply(good)


def test_a_restart_keeps_the_routes(home_settings: Settings) -> None:
    with server("digits-v1-1") as port:
        with envoy(home_settings) as gateway:
            route(gateway, {"digits-v1-1": (port,)}, {"digits": {"digits-v1-1": 100}})
        assert not write_initial(home_settings)
        with envoy(home_settings) as gateway:
            wait_until(lambda: gateway.healthy_ports("digits-v1-1") == {port})
            assert ask(home_settings.gateway_port, "/v1/classify", b"x")[0] == 200


def test_without_envoy_the_files_are_written_all_the_same(home_settings: Settings, tmp_path: Path) -> None:
    write_initial(home_settings)
    Gateway(home_settings).apply(view({"a": (1,)}), confirm=False)
    assert (home_settings.home / "envoy" / "eds" / "a.json").exists()
    Gateway(home_settings).apply(View(), confirm=False)
    assert not (home_settings.home / "envoy" / "eds" / "a.json").exists()
    with pytest.raises(PlatformError, match="does not answer"):
        Gateway(home_settings).active_requests("a")
