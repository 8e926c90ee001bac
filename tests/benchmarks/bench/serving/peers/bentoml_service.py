"""BentoML as its documentation has it: an API that takes a typed image, and the same with adaptive batching.

`bentoml serve bench.serving.peers.bentoml_service:Stock`
"""

from typing import Any

import bentoml
import numpy as np
from PIL.Image import Image

from bench.serving.peers import given


@bentoml.service(workers=1, threads=given.CONCURRENCY)
class Stock:
    """Everything else as it comes: access log, metrics, traces."""

    def __init__(self) -> None:
        self.model = given.model()

    @bentoml.api
    def classify(self, image: Image) -> dict[str, Any]:
        return self.model.answer(self.model.pixels_of(image))


@bentoml.service(
    workers=1,
    threads=given.CONCURRENCY,
    metrics={"enabled": False},
    logging={"access": {"enabled": False}},
)
class Fast:
    """Adaptive batching, without metrics and access log."""

    def __init__(self) -> None:
        self.model = given.model()

    @bentoml.api(batchable=True, max_batch_size=given.MAX_BATCH, max_latency_ms=60_000)
    def classify(self, image: list[Image]) -> list[dict[str, Any]]:
        return self.model.answers(np.stack([self.model.pixels_of(one) for one in image]))
