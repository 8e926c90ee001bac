"""Answers by shared weights; in a module of its own, since other processes import it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from photographs import photograph

from pipelines.core.inference import Classifier
from pipelines.core.model_package import ModelPackage

IMAGES = [photograph(number) for number in range(5)]


def probabilities(package: ModelPackage, weights: Path | None, variant: str = "fp32") -> np.ndarray:
    classifier = Classifier(package, variant, provider="cpu", weights=weights)
    return classifier.predict_bytes(IMAGES).probabilities
