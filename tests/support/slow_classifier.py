"""A real classifier that takes its time."""

from __future__ import annotations

import time

from pipelines.core.inference import Classifier, Outputs
from pipelines.core.model_package import ModelPackage
from pipelines.core.pixelset import Pixels


class Slow(Classifier):
    """Takes its time for every batch, and remembers its size."""

    def __init__(self, package: ModelPackage, seconds: float = 0.0) -> None:
        super().__init__(package, provider="cpu")
        self.seconds = seconds
        self.sizes: list[int] = []
        self.fails = False

    def predict_batch(self, pixels_NHWC: Pixels) -> Outputs:  # noqa: N803
        self.sizes.append(len(pixels_NHWC))
        time.sleep(self.seconds * len(pixels_NHWC))
        if self.fails:
            raise RuntimeError("the runtime failed")
        return super().predict_batch(pixels_NHWC)
