"""Large requests of the Open Inference Protocol: counted while they are read, and others get their turn meanwhile."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import struct
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from example_packages import SIDE, coloured
from served_bento import Served
from serving_platform import ask
from starlette.requests import Request
from starlette.types import Message

from bentos.classifier.dataplane import Dataplane
from bentos.classifier.oip import large_requests, rest
from bentos.classifier.oip.inference_pb2 import ModelInferRequest
from bentos.classifier.oip.tensors import InputTensor, read_inputs
from bentos.kit import settings
from bentos.kit.budget import IN_FLIGHT
from bentos.kit.errors import RequestRefused
from pipelines.core.preprocessing import PreprocessingSpec

INFER = "/v2/models/colours/infer"
PIXELS = {"name": "pixels", "datatype": "UINT8", "shape": [1, SIDE, SIDE, 3]}
IMAGE = {"name": "image", "datatype": "BYTES", "shape": [1]}
VALUES = SIDE * SIDE * 3
NUMBERS = b"[" + b"255," * 2_000_000 + b"0]"


@pytest.fixture(scope="module")
def dataplane(bento: Path) -> Iterator[Dataplane]:
    found = Dataplane(settings.load(bento / "src" / "model"))
    yield found
    found.close()


@pytest.fixture(scope="module")
def spec(dataplane: Dataplane) -> PreprocessingSpec:
    return dataplane.classifier.package.preprocessing


# --- the parser ----------------------------------------------------------------------------------------------------

TEXTS = [
    *("[]", " [ ] ", "[1]", "[1,2 , 3]", "[[1,2],[3,4]]", "[[[1,2],[3]],[[4]]]", "[[],[]]", "[[],1,[2],3]", "{}"),
    *('{"a": [1, "b,c", [2, 3], {"d": [4]}], "e": null}', '["]", "[", "a\\"b", 1, 2]', "[true,false,null,-1.5e3]"),
    *("[,1]", "[1,]", "[1,,2]", "[1 2]", "[1", "[", "[[1,2]", "[[1,],2]", "[1]]", "[1}", "[a,b]", "[[1] [2],3]", "1,2"),
    *("[,]", "[1,2,x,3]", '["a]', "[[1,2],,[3]]", "[1],[2]", "", "[ ,1,2]", "[01,2]", '[1,"a" 2]', "[[,1],2]"),
]


def parsed(loads: Any, text: str) -> Any:
    try:
        return loads(text.encode())
    except ValueError:
        return "no JSON"


@pytest.mark.parametrize("piece", [1, 2, 3, 5, 8, 65536])
def test_pieces_are_what_the_standard_library_finds(monkeypatch: pytest.MonkeyPatch, piece: int) -> None:
    monkeypatch.setattr(large_requests, "_PIECE", piece)
    for text in TEXTS:
        assert parsed(large_requests.loads, text) == parsed(json.loads, text), text


def test_nesting_without_end_is_refused_and_not_followed() -> None:
    with pytest.raises(RecursionError):
        large_requests.loads(b"[" * 100_000)


@pytest.fixture
def often() -> Iterator[None]:
    """Threads that may give the interpreter up do so at once."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def test_others_get_their_turn_while_numbers_are_parsed(often: None) -> None:
    began = threading.Event()

    def parse() -> Any:
        began.set()
        return large_requests.loads(NUMBERS)

    async def work() -> int:
        parsing = asyncio.create_task(large_requests.aside(parse))
        turns = 0
        while not parsing.done():
            await asyncio.sleep(0)
            turns += began.is_set()
        assert len(await parsing) == 2_000_001
        return turns

    assert asyncio.run(work()) > len(NUMBERS) // large_requests._PIECE // 2


# --- what is counted -----------------------------------------------------------------------------------------------


def request_of(dataplane: Dataplane, body: bytes) -> Request:
    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    app = SimpleNamespace(state=SimpleNamespace(dataplane=dataplane))
    scope = {"type": "http", "method": "POST", "headers": [], "path_params": {"name": "colours"}, "app": app}
    return Request(scope, receive)


def test_a_body_and_what_parsing_makes_of_it_are_counted_until_the_tensors_are_made(
    dataplane: Dataplane, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = json.dumps({"inputs": [{**PIXELS, "data": [0] * VALUES}], "id": "a"}).encode().ljust(100_000)
    parsing, may = threading.Event(), threading.Event()

    def loads(data: bytes) -> Any:
        parsing.set()
        assert may.wait(20)
        return json.loads(data)

    monkeypatch.setattr(large_requests, "loads", loads)

    async def work() -> None:
        reading = asyncio.create_task(rest._read(request_of(dataplane, body), dataplane))
        while not parsing.is_set():
            await asyncio.sleep(0.005)
        assert IN_FLIGHT.used > 2 * len(body)
        assert IN_FLIGHT.arriving == set()  # nobody can take it back from a thread
        may.set()
        assert (await reading).num_images == 1
        assert IN_FLIGHT.used == 0

    asyncio.run(work())


def test_more_than_a_process_may_hold_is_refused_with_the_mend(
    dataplane: Dataplane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(IN_FLIGHT, "max_bytes", 150_000)
    request = request_of(dataplane, json.dumps({"inputs": [{**PIXELS, "data": [0] * VALUES}]}).encode().ljust(100_000))
    with pytest.raises(RequestRefused, match="send binary tensor data") as caught:
        asyncio.run(rest._read(request, dataplane))
    assert (caught.value.status, IN_FLIGHT.used) == (413, 0)


# --- no more elements than there are images --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [b"[" + element * 400_000 + b"0]" for element in (b"[],", b"7,", b'"",', b"{},")],
    ids=["lists", "numbers", "texts", "objects"],
)
def test_json_of_more_than_a_request_has_is_refused_unparsed(
    served: Served, dataplane: Dataplane, data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = json.dumps({"inputs": [{**PIXELS, "data": "here"}]}).encode().replace(b'"here"', data)
    status, problem = ask(served.port, INFER, body)
    assert (status, problem["reason"]) == (400, "bad_input"), problem
    assert "more than a request of 64 images has" in problem["detail"]
    monkeypatch.delattr(large_requests, "loads")
    with pytest.raises(RequestRefused):
        asyncio.run(rest._read(request_of(dataplane, body), dataplane))


class Counted(Sequence[int]):
    """Knows how many of its millions were taken."""

    def __init__(self) -> None:
        self.taken = 0

    def __len__(self) -> int:
        return 10**7

    def __getitem__(self, place: Any) -> Any:
        raise NotImplementedError

    def __iter__(self) -> Iterator[int]:
        for _ in itertools.repeat(None, len(self)):
            self.taken += 1
            yield 7


def test_numbers_are_taken_up_to_what_the_shape_has(spec: PreprocessingSpec) -> None:
    values = Counted()
    tensor = InputTensor(name="pixels", datatype="UINT8", shape=(1, SIDE, SIDE, 3), values=values)
    with pytest.raises(RequestRefused, match=f"more than {VALUES:,} values"):
        read_inputs([tensor], spec, 64)
    assert values.taken < 100_000


def test_elements_are_taken_up_to_one_too_many(spec: PreprocessingSpec) -> None:
    for source in ({"raw": bytes(4 * 10**6)}, {"values": [""] * 10**6}, {"values": [[]] * 10 + [""] * 10}):
        tensor = InputTensor(name="image", datatype="BYTES", shape=(3,), **source)
        with pytest.raises(RequestRefused, match="more than 3 elements"):
            read_inputs([tensor], spec, 64)


def test_numbers_by_grpc_are_not_made_a_list(spec: PreprocessingSpec) -> None:
    from bentos.classifier.oip import grpc_messages

    message = ModelInferRequest()
    message.inputs.add(name="pixels", datatype="UINT8", shape=[1]).contents.uint_contents.extend([0] * 100_000)
    (tensor,) = grpc_messages.read_request(message).inputs
    assert not isinstance(tensor.values, list)
    assert grpc_messages.is_large(message)


# --- large and good --------------------------------------------------------------------------------------------------


def test_a_large_image_as_text_is_answered_like_a_small_one(served: Served) -> None:
    image = coloured("red", 4)
    answers = []
    for padding in (0, 300_000):
        data = [base64.b64encode(image + bytes(padding)).decode()]
        status, answer = ask(served.port, INFER, json.dumps({"inputs": [{**IMAGE, "data": data}]}).encode())
        assert status == 200, answer
        answers.append(answer["outputs"])
    assert answers[0] == answers[1]


def test_padding_within_a_large_text_is_refused(spec: PreprocessingSpec) -> None:
    text = "AAAA" * 16_383 + "AA==" + "AAAA"
    tensor = InputTensor(name="image", datatype="BYTES", shape=(1,), values=[text])
    with pytest.raises(RequestRefused, match="not base64"):
        read_inputs([tensor], spec, 64)


def test_many_pixels_in_json_are_answered(served: Served) -> None:
    shape = [64, SIDE, SIDE, 3]
    rows = [[[[row % 256, 100, 200]] * SIDE] * SIDE for row in range(64)]
    body = json.dumps({"inputs": [{**PIXELS, "shape": shape, "data": rows}]}, indent=1).encode()
    raw = b"".join(struct.pack("3B", row % 256, 100, 200) * SIDE * SIDE for row in range(64))
    header = json.dumps({"inputs": [{**PIXELS, "shape": shape, "parameters": {"binary_data_size": len(raw)}}]}).encode()
    status, answer = ask(served.port, INFER, body)
    assert (status, len(body) > large_requests.LARGE_BYTES) == (200, True), answer
    binary = ask(served.port, INFER, header + raw, {"Inference-Header-Content-Length": str(len(header))})
    assert binary[1]["outputs"] == answer["outputs"]
