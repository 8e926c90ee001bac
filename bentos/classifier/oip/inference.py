"""What the protocol asks of a model, for both of its transports."""

from __future__ import annotations

import importlib.metadata
from typing import Any

from bentos.classifier.dataplane import Dataplane
from bentos.classifier.oip.tensors import (
    InferAnswer,
    InferRequest,
    Signature,
    check_outputs,
    inputs_of,
    outputs_of,
    read_inputs,
    write_outputs,
)
from bentos.classifier.prediction_log import Asker
from bentos.kit.access import Caller

SERVER = "darkroom"
EXTENSIONS = ("binary_tensor_data", "classification")
PLATFORM = "onnxruntime_onnx"


def server_version() -> str:
    return f"bentoml-{importlib.metadata.version('bentoml')}"


async def infer(dataplane: Dataplane, request: InferRequest, caller: Caller) -> InferAnswer:
    """Raises NotFound, RequestRefused, ImageError and Overloaded."""
    dataplane.check_name(request.model_name, request.model_version)
    check_outputs(request.outputs)
    spec = dataplane.classifier.package.preprocessing
    images, pixels = read_inputs(request.inputs, spec, dataplane.settings.max_images)
    await caller.charge((len(images) if pixels is None else len(pixels)) - 1)
    outputs = await dataplane.infer(images, pixels, asker=Asker(caller.credential.id, caller.request_id))
    identity = dataplane.identity
    return InferAnswer(
        model_name=identity.model_name,
        model_version=identity.model_version,
        id=request.id,
        outputs=write_outputs(outputs, dataplane.class_names, request),
        parameters={"package_digest": identity.package_digest, "request_id": caller.request_id},
    )


def metadata(dataplane: Dataplane) -> dict[str, Any]:
    """The model's metadata as the protocol's JSON has it."""
    inputs = inputs_of(dataplane.classifier.package.preprocessing)
    outputs = outputs_of(len(dataplane.class_names), dataplane.classifier.embedding_dim)
    return {
        "name": dataplane.identity.model_name,
        "versions": [dataplane.identity.model_version],
        "platform": PLATFORM,
        "inputs": [_json(one) for one in inputs],
        "outputs": [_json(one) for one in outputs],
    }


def _json(signature: Signature) -> dict[str, Any]:
    return {"name": signature.name, "datatype": signature.datatype, "shape": list(signature.shape)}
