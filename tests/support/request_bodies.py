"""What clients of the gateway send."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Sequence

from bentos.classifier.oip.inference_pb2 import ModelInferRequest

INFER = "/inference.GRPCInferenceService/ModelInfer"


def infer_call(image: bytes, *, model: str = "colours", outputs: Sequence[str] = ()) -> bytes:
    """The message of a call by gRPC."""
    request = ModelInferRequest(model_name=model)
    request.inputs.add(name="image", datatype="BYTES", shape=[1]).contents.bytes_contents.append(image)
    for output in outputs:
        request.outputs.add(name=output)
    return request.SerializeToString()


def tar_of(images: Sequence[bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for number, image in enumerate(images):
            member = tarfile.TarInfo(f"{number}.png")
            member.size = len(image)
            archive.addfile(member, io.BytesIO(image))
    return file.getvalue()
