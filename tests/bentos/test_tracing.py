"""Traces of real requests, from a real Envoy to the model, as a collector gets them."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, replace
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import grpc
import pytest
from example_packages import coloured
from front_door import Door, front_door
from homes import settings_under
from otlp_collector import Collector, Received, collecting
from served_bento import Served
from serving_platform import ask, wait_until
from websockets.sync.client import connect

from bentos.classifier.oip import inference_pb2 as messages
from bentos.kit.tracing import Tracer
from pipelines.adapters.gateway import access_log
from pipelines.core.model_package import ModelPackage
from pipelines.core.traces import SAMPLE, tracing
from pipelines.local.ports import free_port

STAGES = ("queue", "decode", "model")
SERVER, INTERNAL = 2, 1
PATH = "/v1/models/colours/classify"


@dataclass(frozen=True, kw_only=True)
class Traced:
    door: Door
    collector: Collector


@pytest.fixture(scope="module")
def traced(bento: Path, package: ModelPackage, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Traced]:
    """Nothing is traced that does not ask for it: the gateway's share is 0. The process's is 1, and must not count."""
    with collecting() as collector:
        chosen = tracing(collector.endpoint, "0")
        assert chosen is not None
        home = settings_under(tmp_path_factory.mktemp("traced") / "home")
        settings = replace(home, default_model="colours", tracing=chosen)
        with front_door(settings, bento, package, **{**chosen.environment, SAMPLE: "1"}) as door:
            yield Traced(door=door, collector=collector)


# --- who is traced -------------------------------------------------------------------------------------------------

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.mark.parametrize("sample", [0.0, 1.0])
@pytest.mark.parametrize(
    ("traceparent", "goes_on"),
    [
        (f"00-{TRACE}-{PARENT}-01", True),
        (f"00-{TRACE}-{PARENT}-03", True),
        (f"cc-{TRACE}-{PARENT}-01-what-comes-later", True),
        (f"00-{TRACE}-{PARENT}-00", False),
        *((text, None) for text in ("", f"ff-{TRACE}-{PARENT}-01", f"00-{'0' * 32}-{PARENT}-01", TRACE)),
        *((text, None) for text in (f"00-{TRACE}-{'0' * 16}-01", f"00-{TRACE.upper()}-{PARENT}-01")),
    ],
)
def test_who_asks_decides_and_else_the_share(traceparent: str, goes_on: bool | None, sample: float) -> None:
    span = Tracer(sample=sample, attributes={}, take=lambda _: None).begin(traceparent.encode(), 0.0)
    if goes_on is None:
        assert (span is not None) == (sample == 1)
        assert span is None or (span.parent_id == 0 and f"{span.trace_id:032x}" != TRACE)
    else:
        assert (span is not None) == goes_on
        assert span is None or span.ids["trace_id"] == TRACE
        assert span is None or f"{span.parent_id:016x}" == PARENT


def test_a_share_is_a_share() -> None:
    tracer = Tracer(sample=0.25, attributes={}, take=lambda _: None)
    num_traced = sum(tracer.begin(b"", 0.0) is not None for _ in range(10_000))
    assert 2_200 < num_traced < 2_800  # 250 is six standard deviations


# --- through Envoy, to the model -----------------------------------------------------------------------------------


def new_trace(*, sampled: bool = True) -> tuple[str, dict[str, str]]:
    """A client's own: its id, and the header."""
    trace_id = secrets.token_hex(16)
    return trace_id, {"traceparent": f"00-{trace_id}-{secrets.token_hex(8)}-{'01' if sampled else '00'}"}


def check_stages(spans: dict[str, Received], parent: str) -> None:
    """Below their request, one after the other, and within its time."""
    whole = spans[parent]
    for stage in STAGES:
        assert spans[stage].parent_id == whole.span_id
        assert spans[stage].kind == INTERNAL
        assert whole.start_ns <= spans[stage].start_ns <= spans[stage].end_ns <= whole.end_ns
    assert spans["queue"].end_ns <= spans["decode"].start_ns
    assert spans["decode"].end_ns <= spans["model"].start_ns
    assert spans["decode"].attributes == {"darkroom.images": 1}
    assert spans["model"].attributes == {"darkroom.batch_images": 1}


def test_one_trace_from_the_gateway_to_the_model(traced: Traced) -> None:
    trace_id, header = new_trace()
    path = f"{PATH}?top_k=1&api_key=out-of-place"
    status, answer = ask(traced.door.port, path, coloured("red", 1), {**header, "X-Request-ID": "mine"})
    assert status == 200
    name = "POST /v1/models/{name}/classify"
    spans = traced.collector.trace(trace_id, "gateway", name, *STAGES)
    gateway, request = spans["gateway"], spans[name]
    assert gateway.parent_id == header["traceparent"].split("-")[2]
    assert request.parent_id == gateway.span_id
    assert (gateway.kind, request.kind) == (SERVER, SERVER)
    assert request.service == "darkroom-classifier"
    assert request.attributes == {
        "http.request.method": "POST",
        "http.route": "/v1/models/{name}/classify",
        "http.response.status_code": 200,
        "darkroom.request_id": "mine",
        "darkroom.model_name": "colours",
        "darkroom.model_version": "7",
        "darkroom.package_digest": answer["package_digest"],
    }
    assert (gateway.attributes["darkroom.request_id"], gateway.attributes["http.url"]) == ("mine", PATH)
    assert "out-of-place" not in str(spans)
    check_stages(spans, name)


def test_an_answer_from_the_cache_says_so(traced: Traced) -> None:
    (_, first), (trace_id, second) = new_trace(), new_trace()
    for header in (first, second):
        ask(traced.door.port, PATH, coloured("red", 2), header)
    spans = traced.collector.trace(trace_id, "gateway", "POST /v1/models/{name}/classify")
    assert spans["POST /v1/models/{name}/classify"].attributes["darkroom.cache_hit"] is True
    assert not set(spans) & set(STAGES)


def infer(port: int, image: bytes, metadata: dict[str, str]) -> messages.ModelInferResponse:
    request = messages.ModelInferRequest(
        model_name="colours", raw_input_contents=[len(image).to_bytes(4, "little") + image]
    )
    request.inputs.add(name="image", datatype="BYTES", shape=[1])
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            request_serializer=messages.ModelInferRequest.SerializeToString,
            response_deserializer=messages.ModelInferResponse.FromString,
        )
        return call(request, timeout=10, metadata=list(metadata.items()))


def test_so_by_grpc(traced: Traced) -> None:
    trace_id, header = new_trace()
    infer(traced.door.port, coloured("red", 3), header)
    name = "inference.GRPCInferenceService/ModelInfer"
    spans = traced.collector.trace(trace_id, "gateway", name, *STAGES)
    request = spans[name]
    assert request.parent_id == spans["gateway"].span_id
    assert request.attributes["rpc.service"] == "inference.GRPCInferenceService"
    assert (request.attributes["rpc.method"], request.attributes["rpc.grpc.status_code"]) == ("ModelInfer", 0)
    check_stages(spans, name)

    trace_id, header = new_trace()
    with pytest.raises(grpc.RpcError):
        infer(traced.door.port, b"no image", header)
    spans = traced.collector.trace(trace_id, name, "decode")
    assert spans[name].attributes["rpc.grpc.status_code"] == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert spans[name].attributes["error.type"] == "not_an_image"
    assert not spans[name].failed
    assert spans["decode"].failed


def test_so_by_websocket_a_span_a_frame(traced: Traced) -> None:
    trace_id, header = new_trace()
    address = f"ws://127.0.0.1:{traced.door.port}/v1/models/colours/stream"
    with connect(address, additional_headers={**header, "X-Request-ID": "ws"}) as socket:
        for image in (coloured("red", 4), b"no image"):
            socket.send(image)
            socket.recv(timeout=20)
    name = "GET /v1/models/{name}/stream"
    traced.collector.trace(trace_id, "gateway", name, "frame", *STAGES)
    spans = traced.collector.of(trace_id)
    frames = sorted((span for span in spans if span.name == "frame"), key=lambda span: span.start_ns)
    connection = next(span for span in spans if span.name == name)
    assert connection.parent_id == next(span.span_id for span in spans if span.service == "darkroom-gateway")
    assert [frame.parent_id for frame in frames] == 2 * [connection.span_id]
    assert [frame.attributes["darkroom.request_id"] for frame in frames] == ["ws/0", "ws/1"]
    assert [frame.attributes["darkroom.status"] for frame in frames] == [200, 415]
    good = [span for span in spans if span.parent_id == frames[0].span_id]
    check_stages({span.name: span for span in (*good, frames[0])}, "frame")


def test_images_of_a_batch_are_in_its_trace_but_not_without_end(traced: Traced) -> None:
    trace_id, header = new_trace()
    line = b"--x\r\nContent-Disposition: form-data; name=image; filename=a\r\n\r\n%s\r\n"
    body = b"".join(line % coloured("red", number) for number in range(100, 170)) + b"--x--\r\n"
    connection = HTTPConnection("127.0.0.1", traced.door.port, timeout=30)
    connection.request("POST", f"{PATH}/batch", body, {**header, "Content-Type": "multipart/form-data; boundary=x"})
    answers = connection.getresponse().read().splitlines()
    connection.close()
    assert len(answers) == 70
    name = "POST /v1/models/{name}/classify/batch"
    request = traced.collector.trace(trace_id, name)[name]
    assert request.attributes["darkroom.stages_left_out"] == 3 * (70 - 64)
    wait_until(lambda: sum(span.parent_id == request.span_id for span in traced.collector.of(trace_id)) == 3 * 64)


def test_log_lines_of_a_traced_request_have_its_ids(traced: Traced) -> None:
    trace_id, header = new_trace()
    assert ask(traced.door.port, PATH, b"no image", header)[0] == 415
    span = traced.collector.trace(trace_id, "POST /v1/models/{name}/classify")["POST /v1/models/{name}/classify"]
    line = log_line(traced.door.served, "trace_id", trace_id)
    assert (line["event"], line["reason"], line["span_id"]) == ("refused", "not_an_image", span.span_id)

    assert ask(traced.door.port, PATH, b"no image", {"X-Request-ID": "untraced"})[0] == 415
    assert "trace_id" not in log_line(traced.door.served, "request_id", "untraced")


def log_line(served: Served, key: str, value: str) -> dict[str, Any]:
    """The first line that has it. It is written right after the answer."""
    wait_until(lambda: any(line.get(key) == value for line in log_lines(served)))
    return next(line for line in log_lines(served) if line.get(key) == value)


def log_lines(served: Served) -> list[dict[str, Any]]:
    """All whole lines."""
    text = served.log.read_text()
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines() if line.startswith("{")]


def test_a_share_of_none_traces_only_who_asks(traced: Traced) -> None:
    refused, header = new_trace(sampled=False)
    for headers in ({}, header, {"X-Request-ID": "0" * 32}):
        assert ask(traced.door.port, PATH, coloured("red", 5), headers)[0] == 200
    last, header = new_trace()
    ask(traced.door.port, PATH, coloured("red", 6), header)
    name = "POST /v1/models/{name}/classify"
    traced.collector.trace(last, "gateway", name)
    assert traced.collector.of(refused) == []
    assert "0" * 32 not in {span.attributes.get("darkroom.request_id") for span in traced.collector.spans}


def test_a_share_of_one_traces_all_whatever_their_request_id(
    bento: Path, package: ModelPackage, tmp_path: Path
) -> None:
    with collecting() as collector:
        chosen = tracing(collector.endpoint, "1")
        assert chosen is not None
        settings = replace(settings_under(tmp_path / "home"), default_model="colours", tracing=chosen)
        with front_door(settings, bento, package, **chosen.environment) as door:
            for number in range(5):
                ask(door.port, "/v1/classify", coloured("red", number), {"X-Request-ID": f"mine-{number}"})
            wait_until(lambda: len(gateways_of(collector)) == 5 and len(requests_of(collector)) == 5)
        # It writes the rest of its log when it ends.
        logged = [json.loads(line) for line in access_log(settings).read_text().splitlines()]
        ours, theirs = requests_of(collector), gateways_of(collector)
        assert [one["trace_id"] for one in logged if one["path"] == "/v1/classify"] == [one.trace_id for one in theirs]
        assert {one.parent_id for one in ours} == {one.span_id for one in theirs}
        assert {one.attributes["darkroom.request_id"] for one in ours} == {f"mine-{number}" for number in range(5)}
        assert set(collector.posts) == {"/v1/traces"}


def gateways_of(collector: Collector) -> list[Received]:
    return [span for span in collector.spans if span.service == "darkroom-gateway"]


def requests_of(collector: Collector) -> list[Received]:
    return [span for span in collector.spans if span.name == "POST /v1/classify"]


def test_a_collector_that_is_away_costs_spans_and_nothing_else(
    bento: Path, package: ModelPackage, tmp_path: Path
) -> None:
    port = free_port()
    chosen = tracing(f"http://127.0.0.1:{port}", "1")
    assert chosen is not None
    settings = replace(settings_under(tmp_path / "home"), default_model="colours", tracing=chosen)
    with front_door(settings, bento, package, **chosen.environment) as door:
        served = door.served

        def asked(number: int) -> int:
            return ask(door.port, "/v1/classify", coloured("red", number))[0]

        assert [asked(number) for number in range(3)] == [200] * 3
        wait_until(lambda: re.search(r'darkroom_spans_total\{result="lost"\} [1-9]', metrics(served)))
        assert [asked(number) for number in range(3, 6)] == [200] * 3
        with collecting(port) as collector:
            wait_until(lambda: asked(6) == 200 and gateways_of(collector) and requests_of(collector))
            wait_until(lambda: "takes spans again" in served.log.read_text())
        said = [line["event"] for line in log_lines(served) if line["logger"] != "darkroom.classifier"]
    assert said == ["the collector takes no spans; they are lost", "the collector takes spans again"]


def metrics(served: Served) -> str:
    connection = HTTPConnection("127.0.0.1", served.port, timeout=30)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    return text


def test_without_a_collector_nobody_is_called_and_no_thread_is_there(served: Served) -> None:
    threads = {path.read_text().strip() for path in Path(f"/proc/{served.pid}/task").glob("*/comm")}
    _, header = new_trace()
    ask(served.port, "/v1/classify", coloured("red", 9), header)
    assert not any(name.startswith("Otel") for name in threads)
    assert "darkroom_spans_total{" not in metrics(served)
    assert not any("trace_id" in line for line in log_lines(served))
