"""The Open Inference Protocol on both transports, with Triton's own clients and by hand."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gzip
import json
import struct
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from example_packages import COLOURS, SIDE, coloured
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from oip_client import ask_with_triton
from served_bento import Served
from serving_platform import ask, wait_until

from bentos.classifier.oip import inference_pb2 as messages
from bentos.classifier.oip.grpc_streams import MAX_STREAMS, Health
from pipelines.core.inference import Classifier, Outputs
from pipelines.core.preprocessing import preprocess

INFER = "/v2/models/colours/infer"
IMAGES = [coloured("blue", 3), coloured("red", 4), coloured("green", 5)]


@pytest.fixture(scope="module")
def expected(served: Served) -> Outputs:
    return Classifier(served.package).predict_bytes(IMAGES)


def infer_grpc(served: Served, request: messages.ModelInferRequest, **metadata: str) -> messages.ModelInferResponse:
    with grpc.insecure_channel(f"127.0.0.1:{served.grpc_port}") as channel:
        call = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            request_serializer=messages.ModelInferRequest.SerializeToString,
            response_deserializer=messages.ModelInferResponse.FromString,
        )
        return call(request, timeout=10, metadata=[(key.replace("_", "-"), value) for key, value in metadata.items()])


def binary(images: list[bytes]) -> bytes:
    return b"".join(struct.pack("<I", len(image)) + image for image in images)


# --- Triton's clients ----------------------------------------------------------------------------------------------


def test_tritons_clients_get_the_answers_of_evaluation(served: Served, expected: Outputs, tmp_path: Path) -> None:
    found = ask_with_triton(
        IMAGES, http_port=served.port, grpc_port=served.grpc_port, model="colours", version="7", folder=tmp_path
    )
    assert set(found) == {"http", "http json", "http gzip", "http aio", "grpc", "grpc aio"}
    for name, answer in found.items():
        for output in ("probabilities", "logits", "embedding"):
            values = np.array(answer[output], np.float32)
            assert np.array_equal(values, getattr(expected, output)), (name, output)
        assert answer["label"] == [2, 0, 1], name
        assert answer["class_name"] == ["blue", "red", "green"], name
    for name in ("http", "grpc"):
        answer = found[name]
        assert answer["server"]["name"] == "darkroom"
        assert answer["model"]["name"] == "colours"
        assert answer["model"]["versions"] == ["7"]
        assert [one["name"] for one in answer["model"]["inputs"]] == ["image", "pixels"]
        assert answer["all"] == ["class_name", "embedding", "label", "logits", "probabilities"]
        assert [row[0].split(":")[2] for row in answer["best"]] == ["blue", "red", "green"]
        assert all(len(row) == 2 for row in answer["best"])
        assert "other" in answer["refusals"]["unknown model"]
        assert answer["refusals"]["no image"]
        assert served.package.digest in json.dumps(answer["parameters"])


# --- by hand -------------------------------------------------------------------------------------------------------


def test_json_alone_takes_base64(served: Served, expected: Outputs) -> None:
    data = [base64.b64encode(image).decode() for image in IMAGES]
    body = {"inputs": [{"name": "image", "datatype": "BYTES", "shape": [3], "data": data}], "id": "a"}
    status, answer = ask(served.port, INFER, json.dumps(body).encode())
    assert status == 200
    assert answer["id"] == "a"
    by_name = {one["name"]: one for one in answer["outputs"]}
    assert by_name["probabilities"]["shape"] == [3, len(COLOURS)]
    assert np.array_equal(np.array(by_name["probabilities"]["data"], np.float32), expected.probabilities.ravel())
    assert by_name["class_name"]["data"] == ["blue", "red", "green"]


@pytest.mark.parametrize("path", [INFER, "/v2/models/colours/versions/7/infer"])
def test_pixels_are_what_preprocessing_makes_of_the_images(served: Served, expected: Outputs, path: str) -> None:
    pixels = np.stack([preprocess(image, served.package.preprocessing) for image in IMAGES])
    shape = [3, SIDE, SIDE, 3]
    nested = {"inputs": [{"name": "pixels", "datatype": "UINT8", "shape": shape, "data": pixels.tolist()}]}
    flat = {"inputs": [{"name": "pixels", "datatype": "UINT8", "shape": shape, "data": pixels.ravel().tolist()}]}
    for body in (nested, flat):
        status, answer = ask(served.port, path, json.dumps(body).encode())
        assert status == 200, answer
        assert np.array_equal(np.array(answer["outputs"][1]["data"], np.float32), expected.logits.ravel())
    request = messages.ModelInferRequest(model_name="colours")
    request.inputs.add(name="pixels", datatype="UINT8", shape=shape).contents.uint_contents.extend(pixels.ravel())
    answer = infer_grpc(served, request)
    assert answer.raw_output_contents[1] == expected.logits.tobytes()


def _rest(inputs: Any, **more: Any) -> bytes:
    return json.dumps({"inputs": inputs, **more}).encode()


PIXELS = {"name": "pixels", "datatype": "UINT8", "shape": [1, SIDE, SIDE, 3]}
IMAGE = {"name": "image", "datatype": "BYTES", "shape": [1]}
GOOD = base64.b64encode(IMAGES[0]).decode()


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "bad_json"),
        (b"[1]", "bad_json"),
        (b'{"inputs": ' + b"[" * 10_000, "bad_json"),
        (b'{"inputs": ' + b" " * 100_000 + b"[" * 3_000, "bad_json"),
        (b'{"inputs": [{"name": "image", "datatype": "BYTES", "shape": [' + b"9" * 6000 + b"]}]}", "bad_json"),
        (b"{}", "bad_request"),
        (_rest([]), "bad_input"),
        (_rest([{**IMAGE, "data": [GOOD]}] * 2), "bad_input"),
        (_rest([3]), "bad_request"),
        (_rest([{**IMAGE, "name": "picture", "data": [GOOD]}]), "bad_input"),
        (_rest([{**IMAGE, "datatype": "FP32", "data": [GOOD]}]), "bad_input"),
        (_rest([{**IMAGE, "shape": [2], "data": [GOOD]}]), "bad_input"),
        (_rest([{**IMAGE, "shape": [0], "data": []}]), "bad_input"),
        (_rest([{**IMAGE, "shape": [-1], "data": [GOOD]}]), "bad_input"),
        (_rest([{**IMAGE, "shape": [65], "data": [GOOD] * 65}]), "bad_input"),
        (_rest([{**IMAGE, "shape": [1, 2], "data": [GOOD]}]), "bad_input"),
        (_rest([{**IMAGE, "shape": "1", "data": [GOOD]}]), "bad_request"),
        (_rest([{**IMAGE, "data": ["no base64!"]}]), "bad_input"),
        (_rest([{**IMAGE, "data": [7]}]), "bad_input"),
        (_rest([{**IMAGE}]), "bad_request"),
        (_rest([{**IMAGE, "parameters": {"binary_data_size": 10**9}}]), "bad_request"),
        (_rest([{**IMAGE, "parameters": 1, "data": [GOOD]}]), "bad_request"),
        (_rest([{**PIXELS, "data": [1] * 5}]), "bad_input"),
        (_rest([{**PIXELS, "data": [256] * SIDE * SIDE * 3}]), "bad_input"),
        (_rest([{**PIXELS, "data": [-1] * SIDE * SIDE * 3}]), "bad_input"),
        (_rest([{**PIXELS, "data": [1.5] * SIDE * SIDE * 3}]), "bad_input"),
        (_rest([{**PIXELS, "data": ["x"] * SIDE * SIDE * 3}]), "bad_input"),
        (_rest([{**PIXELS, "data": [10**30] * SIDE * SIDE * 3}]), "bad_input"),
        (_rest([{**PIXELS, "shape": [1, 3, SIDE, SIDE], "data": [0] * SIDE * SIDE * 3}]), "bad_input"),
        (_rest([{**IMAGE, "data": [GOOD]}], outputs=[{"name": "mask"}]), "bad_output"),
        (
            _rest([{**IMAGE, "data": [GOOD]}], outputs=[{"name": "label", "parameters": {"classification": 2}}]),
            "bad_output",
        ),
        (
            _rest([{**IMAGE, "data": [GOOD]}], outputs=[{"name": "logits", "parameters": {"classification": -2}}]),
            "bad_output",
        ),
        (_rest([{**IMAGE, "data": [GOOD]}], id=3), "bad_request"),
    ],
)
def test_a_wrong_request_is_a_problem_that_says_what(served: Served, body: bytes, reason: str) -> None:
    status, problem = ask(served.port, INFER, body)
    assert (status, problem["reason"]) == (400, reason), problem


def test_a_bad_image_among_good_ones_is_named_by_its_place(served: Served) -> None:
    data = [GOOD, base64.b64encode(b"no image").decode(), GOOD]
    status, problem = ask(served.port, INFER, _rest([{**IMAGE, "shape": [3], "data": data}]))
    assert (status, problem["reason"]) == (415, "not_an_image")
    assert "image 1" in problem["detail"]


@pytest.mark.parametrize(
    ("tail", "length", "size"),
    [(b"\x09\0\0\0abc", None, None), (b"\x01", None, None), (b"", "99999", None), (b"", "-1", None), (b"xy", None, 1)],
)
def test_binary_data_that_do_not_add_up_are_refused(
    served: Served, tail: bytes, length: str | None, size: int | None
) -> None:
    image = {**IMAGE, "parameters": {"binary_data_size": len(tail) if size is None else size}}
    header = _rest([image])
    status, problem = ask(
        served.port, INFER, header + tail, {"Inference-Header-Content-Length": length or str(len(header))}
    )
    assert status == 400, problem


def test_a_bomb_is_not_unpacked(served: Served) -> None:
    status, problem = ask(served.port, INFER, gzip.compress(b"0" * 50_000_000), {"Content-Encoding": "gzip"})
    assert (status, problem["reason"]) == (413, "too_many_bytes")
    assert ask(served.port, INFER, b"no gzip", {"Content-Encoding": "gzip"})[0] == 400
    assert ask(served.port, INFER, b"{}", {"Content-Encoding": "br"})[0] == 415


@pytest.mark.parametrize("path", ["/v2/models/other/infer", "/v2/models/colours/versions/8/infer"])
def test_another_model_or_version_is_not_found(served: Served, path: str) -> None:
    status, problem = ask(served.port, path, _rest([{**IMAGE, "data": [GOOD]}]))
    assert (status, problem["reason"]) == (404, "not_found")


def test_health_and_metadata_paths(served: Served) -> None:
    assert ask(served.port, "/v2/health/live") == (200, {"live": True})
    assert ask(served.port, "/v2/health/ready") == (200, {"ready": True})
    assert ask(served.port, "/v2/models/colours/ready") == (200, {"name": "colours", "ready": True})
    assert ask(served.port, "/v2/models/colours/versions/8/ready")[0] == 404
    assert ask(served.port, "/v2")[1]["extensions"] == ["binary_tensor_data", "classification"]


# --- gRPC ----------------------------------------------------------------------------------------------------------


def _raw_request(images: list[bytes], **fields: Any) -> messages.ModelInferRequest:
    request = messages.ModelInferRequest(model_name="colours", raw_input_contents=[binary(images)])
    request.inputs.add(name="image", datatype="BYTES", shape=[len(images)])
    for name, value in fields.items():
        setattr(request, name, value)
    return request


def _wrong(images: list[bytes], **fields: Any) -> messages.ModelInferRequest:
    request = _raw_request(images)
    for name, value in fields.items():
        setattr(request.inputs[0], name, value)
    return request


def _doubled() -> messages.ModelInferRequest:
    request = _raw_request(IMAGES)
    request.inputs[0].contents.bytes_contents.append(IMAGES[0])
    return request


def _too_many_raw() -> messages.ModelInferRequest:
    request = _raw_request(IMAGES)
    request.raw_input_contents.append(b"")
    return request


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (_raw_request(IMAGES, model_name="other"), grpc.StatusCode.NOT_FOUND),
        (_raw_request(IMAGES, model_version="8"), grpc.StatusCode.NOT_FOUND),
        (_raw_request([b"no image"]), grpc.StatusCode.INVALID_ARGUMENT),
        (_wrong(IMAGES, name="picture"), grpc.StatusCode.INVALID_ARGUMENT),
        (_wrong(IMAGES, datatype="UINT8"), grpc.StatusCode.INVALID_ARGUMENT),
        (_doubled(), grpc.StatusCode.INVALID_ARGUMENT),
        (_too_many_raw(), grpc.StatusCode.INVALID_ARGUMENT),
        (messages.ModelInferRequest(model_name="colours"), grpc.StatusCode.INVALID_ARGUMENT),
    ],
)
def test_a_wrong_call_has_a_status_that_says_what(
    served: Served, request_: messages.ModelInferRequest, code: grpc.StatusCode
) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        infer_grpc(served, request_, x_request_id="grpc-1")
    assert caught.value.code() == code
    assert caught.value.details()
    trailing = dict(caught.value.trailing_metadata())
    assert trailing["x-request-id"] == "grpc-1"
    assert trailing["x-darkroom-reason"]


UNARY = [
    *(f"/inference.GRPCInferenceService/{name}" for name in ("ServerLive", "ServerReady", "ModelReady")),
    *(f"/inference.GRPCInferenceService/{name}" for name in ("ServerMetadata", "ModelMetadata", "ModelInfer")),
    "/grpc.health.v1.Health/Check",
]
STREAMS = ["/grpc.health.v1.Health/Watch", "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"]


def call_raw(served: Served, method: str, message: bytes) -> None:
    """The first answer to bytes."""
    with grpc.insecure_channel(f"127.0.0.1:{served.grpc_port}") as channel:
        metadata = [("x-request-id", "grpc-raw")]
        if method in STREAMS:
            next(channel.stream_stream(method)(iter([message]), timeout=10, metadata=metadata))
        else:
            channel.unary_unary(method)(message, timeout=10, metadata=metadata)


@pytest.mark.parametrize("method", [*UNARY, *STREAMS])
def test_bytes_that_are_no_message_are_refused_like_any_other(served: Served, method: str) -> None:
    def num_refused() -> float:
        return metric_value(served, 'darkroom_refused_requests_total{reason="bad_message"}')

    before = num_refused()
    # A text that is cut off, and a field 0.
    for message in (b"\x0a\xff", b"\x00\x00"):
        with pytest.raises(grpc.RpcError) as caught:
            call_raw(served, method, message)
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert "Error" not in caught.value.details()
        trailing = dict(caught.value.trailing_metadata())
        assert (trailing["x-request-id"], trailing["x-darkroom-reason"]) == ("grpc-raw", "bad_message")
    assert num_refused() == before + 2


def metric_value(served: Served, name: str) -> float:
    lines = raw_text(served.port, "/metrics").splitlines()
    return next((float(line.removeprefix(name)) for line in lines if line.startswith(name)), 0.0)


def raw_text(port: int, path: str) -> str:
    connection = HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path)
        return connection.getresponse().read().decode()
    finally:
        connection.close()


def test_what_the_library_refuses_itself_has_a_status_and_no_more(served: Served) -> None:
    """A message beyond the limit, and a method that there is not: bentos/README.md says so."""
    with pytest.raises(grpc.RpcError) as too_long:
        infer_grpc(served, _raw_request([b"\0" * 2_000_000]))
    assert too_long.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    with pytest.raises(grpc.RpcError) as unknown:
        call_raw(served, "/inference.GRPCInferenceService/ModelTrain", b"")
    assert unknown.value.code() == grpc.StatusCode.UNIMPLEMENTED
    for caught in (too_long, unknown):
        assert "x-darkroom-reason" not in dict(caught.value.trailing_metadata())


# --- standard health and reflection --------------------------------------------------------------------------------


def test_grpc_health_and_reflection(served: Served) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{served.grpc_port}") as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for name in ("", "inference.GRPCInferenceService", "colours"):
            answer = health.Check(health_pb2.HealthCheckRequest(service=name), timeout=10)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.RpcError) as caught:
            health.Check(health_pb2.HealthCheckRequest(service="other"), timeout=10)
        assert caught.value.code() == grpc.StatusCode.NOT_FOUND
        assert dict(caught.value.trailing_metadata())["x-darkroom-reason"] == "not_found"
        ask_reflection = reflection_pb2_grpc.ServerReflectionStub(channel)
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        (answer,) = ask_reflection.ServerReflectionInfo(iter([request]), timeout=10)
        assert {one.name for one in answer.list_services_response.service} == {
            "inference.GRPCInferenceService",
            "grpc.health.v1.Health",
            "grpc.reflection.v1alpha.ServerReflection",
        }


def test_a_process_is_watched_by_no_more_than_a_hundred_at_once(served: Served) -> None:
    """Anybody may; the others are told, and nobody's images wait for them."""
    with grpc.insecure_channel(f"127.0.0.1:{served.grpc_port}") as channel:
        health = health_pb2_grpc.HealthStub(channel)

        def watch() -> Any:
            found = health.Watch(health_pb2.HealthCheckRequest(service="colours"), timeout=60)
            assert next(found).status == health_pb2.HealthCheckResponse.SERVING
            return found

        def comes_in() -> bool:
            with contextlib.suppress(grpc.RpcError):
                watching.append(watch())
            return len(watching) == MAX_STREAMS

        watching = [watch() for _ in range(MAX_STREAMS)]
        with pytest.raises(grpc.RpcError) as caught:
            watch()
        assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert dict(caught.value.trailing_metadata())["x-darkroom-reason"] == "too_many_streams"
        assert health.Check(health_pb2.HealthCheckRequest(), timeout=10).status
        assert infer_grpc(served, _raw_request(IMAGES)).outputs
        watching.pop().cancel()
        wait_until(comes_in)
        for one in watching:
            one.cancel()


def test_whoever_watches_hears_of_it_again_and_of_the_end() -> None:
    """The gateway ends a stream in which nothing moves."""
    told: list[int] = []

    class Context:
        async def write(self, answer: health_pb2.HealthCheckResponse) -> None:
            told.append(answer.status)
            if len(told) == 3:
                ending.set()

    ending = asyncio.Event()
    watched = Health(["colours"], ending, again_s=0.001).watch(
        health_pb2.HealthCheckRequest(service="colours").SerializeToString(), Context()
    )
    asyncio.run(asyncio.wait_for(watched, 10))
    answer = health_pb2.HealthCheckResponse
    assert told == [answer.SERVING, answer.SERVING, answer.SERVING, answer.NOT_SERVING]
