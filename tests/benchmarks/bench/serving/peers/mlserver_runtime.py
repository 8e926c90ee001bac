"""MLServer's custom runtime: one base64 image in, probabilities out, by the Open Inference Protocol.

`mlserver start FOLDER`, where FOLDER has model-settings.json that names `Classifier`, and settings.json.
"""

from __future__ import annotations

import numpy as np
from mlserver import MLModel
from mlserver.codecs import Base64Codec, NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse

from bench.serving.model import Model
from bench.serving.peers import given


class Classifier(MLModel):  # type: ignore[misc]
    work: Model

    async def load(self) -> bool:
        self.work = given.model()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        (image,) = Base64Codec.decode_input(payload.inputs[0])
        probabilities = np.asarray(self.work.probabilities(self.work.pixels(image)), np.float32)
        return InferenceResponse(
            model_name=self.name, outputs=[NumpyCodec.encode_output("probabilities", probabilities[None])]
        )
