"""What the protocol asks of a model, for both of its transports."""

from __future__ import annotations

import importlib.metadata
from typing import Any, NamedTuple

from bentos.classifier.dataplane import Dataplane
from bentos.classifier.oip.tensors import (
    InferAnswer,
    InferRequest,
    RequestedOutput,
    Signature,
    check_outputs,
    inputs_of,
    outputs_of,
    outputs_to_write,
    read_inputs,
    write_outputs,
)
from bentos.classifier.prediction_log import Asker
from bentos.kit.access import Caller
from pipelines.core.pixelset import Pixels

SERVER = "darkroom"
EXTENSIONS = ("binary_tensor_data", "classification")
PLATFORM = "onnxruntime_onnx"


def server_version() -> str:
    return f"bentoml-{importlib.metadata.version('bentoml')}"


class Read(NamedTuple):
    """A request that is whole and in bounds, without the bytes that it came in."""

    id: str
    outputs: tuple[RequestedOutput, ...]
    images: list[bytes]
    pixels: Pixels | None
    """Instead of images."""

    @property
    def num_images(self) -> int:
        return len(self.images) if self.pixels is None else len(self.pixels)


def read(dataplane: Dataplane, request: InferRequest) -> Read:
    """Raises NotFound and RequestRefused. Any thread may."""
    dataplane.check_name(request.model_name, request.model_version)
    check_outputs(request.outputs)
    spec = dataplane.classifier.package.preprocessing
    images, pixels = read_inputs(request.inputs, spec, dataplane.settings.max_images)
    return Read(id=request.id, outputs=outputs_to_write(request), images=images, pixels=pixels)


async def infer(dataplane: Dataplane, request: Read, caller: Caller) -> InferAnswer:
    """Raises RequestRefused (429), ImageError and Overloaded."""
    await caller.charge(request.num_images - 1)
    outputs = await dataplane.infer(
        request.images, request.pixels, asker=Asker(caller.credential.id, caller.request_id)
    )
    identity = dataplane.identity
    return InferAnswer(
        model_name=identity.model_name,
        model_version=identity.model_version,
        id=request.id,
        outputs=write_outputs(outputs, dataplane.class_names, request.outputs),
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
