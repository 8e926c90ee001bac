"""The work that every server but ours is given: our decoding, the same ONNX file, the best five classes.

Runs in the peers' environments too: the standard library, NumPy, Pillow and onnxruntime are all it needs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipelines.core import model_package
from pipelines.core.inference import Runtime
from pipelines.core.pixelset import Pixels
from pipelines.core.preprocessing import preprocess, resize

TOP_K = 5


class Model:
    """Bytes or a Pillow image in, an answer like ours out."""

    def __init__(self, folder: Path, variant: str, threads: int) -> None:
        package = model_package.load(folder)
        self._spec, self._names = package.preprocessing, package.class_names
        self._runtime = Runtime(package.read(package.variants[variant].file), threads, provider="cpu")

    def classify(self, image: bytes) -> dict[str, Any]:
        return self.answer(self.pixels(image))

    def pixels(self, image: bytes) -> Pixels:
        return preprocess(image, self._spec)

    def pixels_of(self, image: Image.Image) -> Pixels:
        """Of an image that a framework has opened: reduced while decoding, as our own decoding does."""
        side = 2 * max(self._spec.width, self._spec.height)
        image.draft(None, (side, side))
        return resize(image.convert("RGB"), self._spec)

    def probabilities(self, pixels: Pixels) -> np.ndarray:
        """Of every class, float32 [C]."""
        found: np.ndarray = self._runtime.run_batch(pixels[None]).probabilities[0]
        return found

    def answer(self, pixels: Pixels) -> dict[str, Any]:
        return self.answers(pixels[None])[0]

    def answers(self, pixels_NHWC: Pixels) -> list[dict[str, Any]]:  # noqa: N803
        """Of a batch, computed together."""
        return [self._top(row) for row in self._runtime.run_batch(pixels_NHWC).probabilities]

    def _top(self, probabilities: np.ndarray) -> dict[str, Any]:
        labels = np.argsort(-probabilities, kind="stable")[:TOP_K].tolist()
        return {
            "predictions": [
                {"class_name": self._names[label], "label": label, "probability": float(probabilities[label])}
                for label in labels
            ]
        }
