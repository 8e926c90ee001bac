"""Embeddings by one of our own model packages. Apart from the others, which training computes without ONNX Runtime."""

from __future__ import annotations

import os

import numpy as np

from pipelines.core.embedding import Embeddings, Pixels, unit
from pipelines.core.inference import Classifier
from pipelines.core.model_package import ModelPackage


class PackageEmbedder:
    """The embedding output of one of our own model packages, scaled to unit length."""

    def __init__(self, package: ModelPackage, view: str, *, threads: int = 0) -> None:
        """`threads` of ONNX Runtime; 0 takes every core."""
        self.view = view
        self.height = package.preprocessing.height
        self.width = package.preprocessing.width
        self.fit = package.preprocessing.fit
        self._classifier = Classifier(package, threads=threads or len(os.sched_getaffinity(0)))
        self.dim = self.embed(np.zeros((1, self.height, self.width, 3), np.uint8)).shape[1]

    def embed(self, pixels: Pixels) -> Embeddings:
        """Unit rows [N, dim] for uint8 [N, height, width, 3]."""
        return unit(self._classifier.predict_pixels(pixels).embedding.astype(np.float32))
