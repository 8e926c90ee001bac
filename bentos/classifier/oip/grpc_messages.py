"""The protocol's gRPC messages, from and to the tensors that both transports share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bentos.classifier.oip.inference_pb2 import ModelInferRequest, ModelInferResponse
from bentos.classifier.oip.large_requests import LARGE_BYTES
from bentos.classifier.oip.tensors import InferAnswer, InferRequest, InputTensor, RequestedOutput, to_bytes
from bentos.kit.errors import RequestRefused


def read_request(message: ModelInferRequest) -> InferRequest:
    """Raises RequestRefused where raw contents and inputs do not fit together."""
    raw = message.raw_input_contents
    if raw and len(raw) != len(message.inputs):
        raise RequestRefused(400, "bad_input", f"{len(raw)} raw_input_contents for {len(message.inputs)} inputs")
    inputs = []
    for number, tensor in enumerate(message.inputs):
        if raw and tensor.HasField("contents"):
            raise RequestRefused(400, "bad_input", f"input {tensor.name!r}: both contents and raw_input_contents")
        inputs.append(
            InputTensor(
                name=tensor.name,
                datatype=tensor.datatype,
                shape=tuple(tensor.shape),
                raw=raw[number] if raw else None,
                values=None if raw else _values(tensor),
            )
        )
    return InferRequest(
        model_name=message.model_name,
        model_version=message.model_version,
        id=message.id,
        inputs=tuple(inputs),
        outputs=tuple(_requested(one) for one in message.outputs),
    )


def write_answer(answer: InferAnswer) -> ModelInferResponse:
    """Tensors as raw contents, which every client reads and costs least."""
    message = ModelInferResponse(model_name=answer.model_name, model_version=answer.model_version, id=answer.id)
    for name, text in answer.parameters.items():
        message.parameters[name].string_param = text
    for tensor in answer.outputs:
        message.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.array.shape)
        message.raw_output_contents.append(to_bytes(tensor))
    return message


def is_large(message: ModelInferRequest) -> bool:
    """Whether it has so many numbers that reading them would keep others waiting."""
    return any(len(tensor.contents.uint_contents) > LARGE_BYTES for tensor in message.inputs)


def _values(tensor: Any) -> Sequence[Any]:
    """As they are: a list of 20 million would be made before anybody knows how many are expected."""
    contents = tensor.contents
    values: Sequence[Any] = contents.bytes_contents if tensor.datatype == "BYTES" else contents.uint_contents
    return values


def _requested(output: Any) -> RequestedOutput:
    return RequestedOutput(name=output.name, class_count=_class_count(output.parameters, output.name))


def _class_count(parameters: Mapping[str, Any], name: str) -> int:
    if "classification" not in parameters:
        return 0
    found = parameters["classification"]
    if found.WhichOneof("parameter_choice") != "int64_param":
        raise RequestRefused(400, "bad_output", f"output {name!r}: parameter classification is no int64_param")
    return int(found.int64_param)
