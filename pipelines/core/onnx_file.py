"""A look into an ONNX file without the onnx library: does any tensor keep its data outside the file?

Serving has no onnx package, and ONNX Runtime would follow such a reference to whatever path it names. Field numbers are
those of onnx.proto (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto).

Whoever reads the same bytes otherwise than the runtime does can be told another story. So what no writer of protobuf
makes is refused, whether the runtime takes it (a key of more than 32 bits, which it cuts to 32; groups) or not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

_TENSOR: Mapping[int, str] = {}
_CHILDREN: Mapping[str, Mapping[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": _TENSOR,
}
_TENSOR_EXTERNAL_DATA = 13
_TENSOR_DATA_LOCATION = 14
_MAX_DEPTH = 64
"""The runtime's is 100."""
_KEY_BYTES, _LARGEST_KEY = 5, 2**32 - 1
_SIZE_BYTES, _LARGEST_SIZE = 5, 2**31 - 1
_VALUE_BYTES = 10


def has_external_data(model: bytes) -> bool:
    """True where a tensor of the model refers to another file.

    Raises ValueError for bytes that are no protobuf, or that the runtime takes for a file of its own format.
    """
    if model[4:8] == b"ORTM":
        raise ValueError("ONNX Runtime's own format")
    return _external(memoryview(model), "model", 0)


def _external(message: memoryview, kind: str, depth: int) -> bool:
    if depth > _MAX_DEPTH:
        raise ValueError("nested too deeply")
    for number, payload in _fields(message):
        if kind == "tensor":
            if number == _TENSOR_EXTERNAL_DATA or (number == _TENSOR_DATA_LOCATION and payload != 0):
                return True
            continue
        child = _CHILDREN[kind].get(number)
        if child is not None and isinstance(payload, memoryview) and _external(payload, child, depth + 1):
            return True
    return False


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Field number and value: an int for varints (fixed-width fields are skipped), a view for the rest."""
    position = 0
    while position < len(message):
        key, position = _varint(message, position, _KEY_BYTES)
        number, wire = key >> 3, key & 7
        if key > _LARGEST_KEY or number == 0:
            raise ValueError(f"field {number}")
        if wire == 0:
            value, position = _varint(message, position, _VALUE_BYTES)
            yield number, value
            continue
        if wire == 2:
            size, position = _varint(message, position, _SIZE_BYTES)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire}")
        if size > _LARGEST_SIZE or position + size > len(message):
            raise ValueError("truncated")
        if wire == 2:
            yield number, message[position : position + size]
        position += size


def _varint(message: memoryview, position: int, longest: int) -> tuple[int, int]:
    """The number, and the place behind it. `longest` is what the runtime takes, in bytes."""
    value = 0
    for place, byte in enumerate(message[position : position + longest]):
        value |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            return value, position + place + 1
    raise ValueError("truncated" if position + longest > len(message) else f"a number of more than {longest} bytes")
