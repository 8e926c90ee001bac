"""The protocol's JSON, with its binary tensor extension: a JSON header, then the tensors' bytes one after another."""

from __future__ import annotations

import json
import reprlib
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bentos.classifier.oip.tensors import (
    InferAnswer,
    InferRequest,
    InputTensor,
    OutputTensor,
    RequestedOutput,
    to_bytes,
)
from bentos.kit.errors import RequestRefused

HEADER_LENGTH = "inference-header-content-length"

_MAX_RANK = 8
_BRIEFLY = reprlib.Repr()
"""A list may have a million elements, and it is not all looked at."""
_BRIEFLY.maxstring = _BRIEFLY.maxother = 80


def uncompressed(body: bytes, encoding: str, max_bytes: int) -> bytes:
    """The body that a client sent as gzip or deflate. Raises RequestRefused; never makes more than `max_bytes`."""
    if encoding not in ("gzip", "deflate"):
        raise RequestRefused(415, "bad_encoding", f"Content-Encoding {encoding!r}: gzip, deflate or none")
    decoder = zlib.decompressobj(wbits=31 if encoding == "gzip" else 15)
    try:
        found = decoder.decompress(body, max_bytes)
    except zlib.error as error:
        raise RequestRefused(400, "bad_encoding", f"the body is not {encoding}: {error}") from error
    if decoder.unconsumed_tail:
        raise RequestRefused(413, "too_many_bytes", f"the body is larger than {max_bytes:,} bytes")
    if not decoder.eof:
        raise RequestRefused(400, "bad_encoding", f"the {encoding} body is cut off")
    return found


def json_bytes(body: bytes, header_length: str | None) -> int:
    """How many of the body are JSON. Raises RequestRefused."""
    if header_length is None:
        return len(body)
    if not header_length.isascii() or not header_length.isdecimal() or len(header_length) > 12:
        raise _bad_length(header_length, body)
    if int(header_length) > len(body):
        raise _bad_length(header_length, body)
    return int(header_length)


def read_request(
    body: bytes, split: int, model_name: str, model_version: str, loads: Callable[[bytes], Any] = json.loads
) -> InferRequest:
    """`split`: where its JSON ends. Raises RequestRefused, naming what is wrong and where."""
    header = _parse(body[:split], loads)
    binary = memoryview(body)[split:]
    place = 0
    inputs: list[InputTensor] = []
    for number, table in enumerate(_list(header, "inputs")):
        tensor, size = _input(table, f"inputs[{number}]", binary[place:])
        inputs.append(tensor)
        place += size
    if place != len(binary):
        raise RequestRefused(400, "bad_request", f"{len(binary) - place} bytes after the last binary input")
    by_default = _parameters(header, "request").get("binary_data_output", False) is True
    outputs = tuple(
        _requested(table, f"outputs[{number}]", by_default)
        for number, table in enumerate(_list(header, "outputs", required=False))
    )
    return InferRequest(
        model_name=model_name,
        model_version=model_version,
        id=_text(header, "id", "request", default=""),
        inputs=tuple(inputs),
        outputs=outputs,
        binary_outputs=by_default,
    )


def write_answer(answer: InferAnswer) -> tuple[bytes, int | None]:
    """Body, and the length of its JSON where binary tensors follow."""
    tensors = [_output(tensor) for tensor in answer.outputs]
    table: dict[str, Any] = {"model_name": answer.model_name, "model_version": answer.model_version}
    if answer.id:
        table["id"] = answer.id
    if answer.parameters:
        table["parameters"] = dict(answer.parameters)
    table["outputs"] = [description for description, _ in tensors]
    header = json.dumps(table, separators=(",", ":")).encode()
    binary = [data for _, data in tensors if data is not None]
    if not binary:
        return header, None
    return b"".join([header, *binary]), len(header)


def _bad_length(text: str, body: bytes) -> RequestRefused:
    return RequestRefused(
        400, "bad_request", f"Inference-Header-Content-Length: {text!r} with a body of {len(body)} bytes"
    )


def _parse(data: bytes, loads: Callable[[bytes], Any]) -> Mapping[str, Any]:
    try:
        table = loads(data)
    except (ValueError, RecursionError) as error:
        raise RequestRefused(400, "bad_json", f"the request is not JSON: {error}") from error
    if not isinstance(table, dict):
        raise RequestRefused(400, "bad_json", "the request: expected an object")
    return table


def _input(table: Any, where: str, binary: memoryview) -> tuple[InputTensor, int]:
    """The tensor and how many of the binary bytes it took."""
    if not isinstance(table, dict):
        raise _wrong(where, table, "an object")
    parameters = _parameters(table, where)
    name, datatype = _text(table, "name", where), _text(table, "datatype", where)
    shape = _shape(table.get("shape"), f"{where}.shape")
    size = parameters.get("binary_data_size")
    if size is None:
        data = table.get("data")
        if not isinstance(data, list):
            raise _wrong(f"{where}.data", data, "a list, or parameters.binary_data_size and binary data")
        return InputTensor(name=name, datatype=datatype, shape=shape, values=data), 0
    if "data" in table:
        raise RequestRefused(400, "bad_request", f"{where}: has both data and parameters.binary_data_size")
    if not _is_whole(size) or not 0 <= size <= len(binary):
        raise _wrong(f"{where}.parameters.binary_data_size", size, f"a number up to {len(binary)}, what the body has")
    return InputTensor(name=name, datatype=datatype, shape=shape, raw=binary[:size]), size


def _requested(table: Any, where: str, binary: bool) -> RequestedOutput:
    if not isinstance(table, dict):
        raise _wrong(where, table, "an object")
    parameters = _parameters(table, where)
    class_count = parameters.get("classification", 0)
    if not _is_whole(class_count):
        raise _wrong(f"{where}.parameters.classification", class_count, "a number")
    chosen = parameters.get("binary_data", binary)
    return RequestedOutput(name=_text(table, "name", where), class_count=class_count, binary=chosen is True)


def _output(tensor: OutputTensor) -> tuple[dict[str, Any], bytes | None]:
    description: dict[str, Any] = {
        "name": tensor.name,
        "datatype": tensor.datatype,
        "shape": list(tensor.array.shape),
    }
    if tensor.binary:
        data = to_bytes(tensor)
        description["parameters"] = {"binary_data_size": len(data)}
        return description, data
    values = tensor.array.ravel().tolist()
    description["data"] = [value.decode() for value in values] if tensor.datatype == "BYTES" else values
    return description, None


def _list(table: Mapping[str, Any], key: str, *, required: bool = True) -> Sequence[Any]:
    if key not in table and not required:
        return []
    found = table.get(key)
    if not isinstance(found, list):
        raise _wrong(key, found, "a list")
    return found


def _parameters(table: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    found = table.get("parameters", {})
    if not isinstance(found, dict):
        raise _wrong(f"{where}.parameters", found, "an object")
    return found


def _text(table: Mapping[str, Any], key: str, where: str, default: str | None = None) -> str:
    found = table.get(key, default)
    if not isinstance(found, str):
        raise _wrong(f"{where}.{key}", found, "a text")
    return found


def _shape(found: Any, where: str) -> tuple[int, ...]:
    if not isinstance(found, list) or len(found) > _MAX_RANK or not all(_is_whole(side) for side in found):
        raise _wrong(where, found, "a list of whole numbers")
    return tuple(found)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _wrong(where: str, found: Any, expected: str) -> RequestRefused:
    return RequestRefused(400, "bad_request", f"{where}: {_BRIEFLY.repr(found)}; expected {expected}")
