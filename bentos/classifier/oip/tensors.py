"""Tensors as the protocol has them, between either transport and the dataplane.

A model takes one of two inputs: `image`, BYTES [N] or [N, 1], encoded files; or `pixels`, UINT8 [N, height, width, 3],
which `pipelines.core.preprocessing` would have made of them.
"""

from __future__ import annotations

import base64
import binascii
import itertools
import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bentos.kit.errors import RequestRefused
from pipelines.core.inference import Outputs
from pipelines.core.pixelset import Pixels
from pipelines.core.preprocessing import PreprocessingSpec

IMAGE, PIXELS = "image", "pixels"
OUTPUT_NAMES = ("probabilities", "logits", "embedding", "label", "class_name")
MAX_CLASS_COUNT = 100_000

_LENGTH = struct.Struct("<I")
_OBJECT = np.dtype(object)
_PIECE = 64 * 1024
"""What is decoded at once: one call for megabytes would keep all others waiting."""


@dataclass(frozen=True, kw_only=True)
class Signature:
    """A tensor that a model takes or gives; -1 in the shape is any size."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class InputTensor:
    """An input as it came: either `raw`, the protocol's binary form, or `values`, the transport's own numbers."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    raw: bytes | memoryview | None = None
    values: Sequence[Any] | None = None


@dataclass(frozen=True, kw_only=True)
class RequestedOutput:
    name: str
    class_count: int = 0
    """Triton's classification extension: instead of the numbers, so many "value:index:class name", best first."""
    binary: bool = False


_ALL_OUTPUTS = {
    binary: tuple(RequestedOutput(name=name, binary=binary) for name in OUTPUT_NAMES) for binary in (False, True)
}


@dataclass(frozen=True, kw_only=True)
class InferRequest:
    """What both transports' requests say."""

    model_name: str
    model_version: str = ""
    id: str = ""
    inputs: tuple[InputTensor, ...] = ()
    outputs: tuple[RequestedOutput, ...] = ()
    """None asks for all."""
    binary_outputs: bool = False
    """Those that are not asked for by name."""


@dataclass(frozen=True, kw_only=True)
class OutputTensor:
    name: str
    datatype: str
    array: NDArray[Any]
    """Of dtype object, holding bytes, for BYTES."""
    binary: bool = False


@dataclass(frozen=True, kw_only=True)
class InferAnswer:
    model_name: str
    model_version: str
    id: str
    outputs: tuple[OutputTensor, ...]
    parameters: Mapping[str, str] = field(default_factory=dict)


def inputs_of(spec: PreprocessingSpec) -> tuple[Signature, ...]:
    return (
        Signature(name=IMAGE, datatype="BYTES", shape=(-1,)),
        Signature(name=PIXELS, datatype="UINT8", shape=(-1, spec.height, spec.width, 3)),
    )


def outputs_of(num_classes: int, embedding_dim: int) -> tuple[Signature, ...]:
    return (
        Signature(name="probabilities", datatype="FP32", shape=(-1, num_classes)),
        Signature(name="logits", datatype="FP32", shape=(-1, num_classes)),
        Signature(name="embedding", datatype="FP32", shape=(-1, embedding_dim)),
        Signature(name="label", datatype="INT64", shape=(-1,)),
        Signature(name="class_name", datatype="BYTES", shape=(-1,)),
    )


def read_inputs(
    inputs: Sequence[InputTensor], spec: PreprocessingSpec, max_images: int
) -> tuple[list[bytes], Pixels | None]:
    """Encoded images, or pixels. Raises RequestRefused for anything but one of the two inputs, whole and in bounds."""
    if len(inputs) != 1 or inputs[0].name not in (IMAGE, PIXELS):
        names = ", ".join(repr(one.name) for one in inputs) or "none"
        raise RequestRefused(400, "bad_input", f"inputs: {names}; expected one, {IMAGE!r} or {PIXELS!r}")
    (tensor,) = inputs
    if tensor.name == IMAGE:
        return _read_images(tensor, max_images), None
    return [], _read_pixels(tensor, spec, max_images)


def _read_images(tensor: InputTensor, max_images: int) -> list[bytes]:
    _check_type(tensor, "BYTES")
    if len(tensor.shape) not in (1, 2) or tensor.shape[1:] not in ((), (1,)):
        raise _bad_shape(tensor, "[N] or [N, 1]")
    num_images = _count(tensor, max_images)
    found = _elements(tensor.raw) if tensor.raw is not None else map(_element, _flat(tensor.values or ()))
    images = list(itertools.islice(found, num_images + 1))  # there may be millions
    if len(images) != num_images:
        told = f"more than {num_images}" if len(images) > num_images else str(len(images))
        raise RequestRefused(400, "bad_input", f"input {IMAGE!r}: shape {list(tensor.shape)} with {told} elements")
    return images


def _elements(raw: bytes | memoryview) -> Iterator[bytes]:
    """BYTES in binary: each element after its length, 4 bytes, little-endian."""
    place, end = 0, len(raw)
    while place < end:
        if end - place < _LENGTH.size:
            raise RequestRefused(400, "bad_input", f"input {IMAGE!r}: {end - place} bytes too many at its end")
        (length,) = _LENGTH.unpack_from(raw, place)
        place += _LENGTH.size
        if length > end - place:
            raise RequestRefused(
                400, "bad_input", f"input {IMAGE!r}: an element of {length:,} bytes where {end - place:,} are left"
            )
        yield bytes(raw[place : place + length])
        place += length


def _element(value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str):
        raise RequestRefused(400, "bad_input", f"input {IMAGE!r}: expected base64 text, found {type(value).__name__}")
    try:
        pieces = [
            base64.b64decode(value[start : start + _PIECE], validate=True) for start in range(0, len(value), _PIECE)
        ]
        if any(len(piece) != _PIECE // 4 * 3 for piece in pieces[:-1]):
            raise ValueError("padding before its end")
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)
    except (binascii.Error, ValueError) as error:
        raise RequestRefused(
            400, "bad_input", f"input {IMAGE!r}: not base64 ({error}); in JSON, images are base64 text"
        ) from error


def _read_pixels(tensor: InputTensor, spec: PreprocessingSpec, max_images: int) -> Pixels:
    _check_type(tensor, "UINT8")
    if len(tensor.shape) != 4 or tensor.shape[1:] != (spec.height, spec.width, 3):
        raise _bad_shape(tensor, f"[N, {spec.height}, {spec.width}, 3]")
    _count(tensor, max_images)
    expected = math.prod(tensor.shape)
    if tensor.raw is not None:
        if len(tensor.raw) != expected:
            raise RequestRefused(
                400, "bad_input", f"input {PIXELS!r}: {len(tensor.raw):,} bytes where its shape has {expected:,}"
            )
        return np.frombuffer(tensor.raw, np.uint8).reshape(tensor.shape)
    pixels = bytearray()
    values = _flat(tensor.values or ())
    try:
        while len(pixels) <= expected and (piece := bytes(itertools.islice(values, _PIECE))):
            pixels += piece
    except (ValueError, TypeError, OverflowError) as error:
        raise RequestRefused(400, "bad_input", f"input {PIXELS!r}: expected whole numbers from 0 to 255") from error
    if len(pixels) != expected:
        told = f"{len(pixels):,}" if len(pixels) < expected else f"more than {expected:,}"
        raise RequestRefused(400, "bad_input", f"input {PIXELS!r}: {told} values where its shape has {expected:,}")
    return np.frombuffer(pixels, np.uint8).reshape(tensor.shape)


def _flat(values: Sequence[Any]) -> Iterator[Any]:
    """Nested or flat lists as one flat list; the shape says the rest."""
    waiting = [iter(values)]
    while waiting:
        for value in waiting[-1]:
            if isinstance(value, list):
                waiting.append(iter(value))
                break
            yield value
        else:
            waiting.pop()


def _check_type(tensor: InputTensor, datatype: str) -> None:
    if tensor.datatype != datatype:
        raise RequestRefused(
            400, "bad_input", f"input {tensor.name!r}: datatype {tensor.datatype!r}, expected {datatype}"
        )


def _count(tensor: InputTensor, max_images: int) -> int:
    num_images = tensor.shape[0]
    if not 1 <= num_images <= max_images:
        raise RequestRefused(
            400, "bad_input", f"input {tensor.name!r}: {num_images} images; from 1 to {max_images} in a request"
        )
    return num_images


def _bad_shape(tensor: InputTensor, expected: str) -> RequestRefused:
    return RequestRefused(400, "bad_input", f"input {tensor.name!r}: shape {list(tensor.shape)}, expected {expected}")


def outputs_to_write(request: InferRequest) -> tuple[RequestedOutput, ...]:
    """What it asks for, or all."""
    return request.outputs or _ALL_OUTPUTS[request.binary_outputs]


def write_outputs(
    outputs: Outputs, class_names: Sequence[str], wanted: Sequence[RequestedOutput]
) -> tuple[OutputTensor, ...]:
    """The wanted tensors in their order, which `check_outputs` has found to exist."""
    return tuple(_output(outputs, class_names, one) for one in wanted)


def check_outputs(requested: Sequence[RequestedOutput]) -> None:
    """Raises RequestRefused for an output that there is not, before anything is computed."""
    for one in requested:
        if one.name not in OUTPUT_NAMES:
            raise RequestRefused(
                400, "bad_output", f"output {one.name!r}: there is none; there are {', '.join(OUTPUT_NAMES)}"
            )
        if one.class_count and one.name not in ("probabilities", "logits"):
            raise RequestRefused(400, "bad_output", f"output {one.name!r}: class_count is for probabilities and logits")
        if not 0 <= one.class_count <= MAX_CLASS_COUNT:
            raise RequestRefused(400, "bad_output", f"output {one.name!r}: class_count {one.class_count}")


def _output(outputs: Outputs, class_names: Sequence[str], wanted: RequestedOutput) -> OutputTensor:
    name = wanted.name
    if name == "label":
        labels = outputs.probabilities.argmax(axis=1)
        return OutputTensor(name=name, datatype="INT64", array=labels.astype(np.int64), binary=wanted.binary)
    if name == "class_name":
        names = [class_names[label].encode() for label in outputs.probabilities.argmax(axis=1)]
        return OutputTensor(name=name, datatype="BYTES", array=np.array(names, _OBJECT), binary=wanted.binary)
    values: NDArray[np.float32] = getattr(outputs, name)
    if wanted.class_count:
        best = _classified(values, class_names, wanted.class_count)
        return OutputTensor(name=name, datatype="BYTES", array=best, binary=wanted.binary)
    return OutputTensor(name=name, datatype="FP32", array=values, binary=wanted.binary)


def _classified(values: NDArray[np.float32], class_names: Sequence[str], count: int) -> NDArray[Any]:
    order = np.argsort(-values, axis=1, kind="stable")[:, :count]
    found = np.empty(order.shape, _OBJECT)
    for row, labels in enumerate(order):
        for place, label in enumerate(labels):
            found[row, place] = f"{values[row, label]:f}:{label}:{class_names[label]}".encode()
    return found


def to_bytes(tensor: OutputTensor) -> bytes:
    """The protocol's binary form: C order, little-endian; BYTES each after its length."""
    if tensor.datatype != "BYTES":
        return np.ascontiguousarray(tensor.array).astype(tensor.array.dtype.newbyteorder("<"), copy=False).tobytes()
    return b"".join(_LENGTH.pack(len(value)) + value for value in tensor.array.ravel())
