"""Temperature scaling (Guo et al. 2017, https://arxiv.org/abs/1706.04599)."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

_LOW, _HIGH = 0.05, 20.0
_GOLDEN = (math.sqrt(5) - 1) / 2


def fit_temperature(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """The temperature in 0.05..20 with the lowest mean negative log-likelihood of labels [N] under logits [N, C].

    1 for no images. The likelihood has one minimum in log T, so a golden-section search finds it; 4 digits are kept.
    """
    if not len(labels):
        return 1.0
    exact = logits.astype(np.float64)
    low, high = math.log(_LOW), math.log(_HIGH)
    while high - low > 1e-5:
        span = _GOLDEN * (high - low)
        if _likelihood_loss(exact, labels, math.exp(high - span)) < _likelihood_loss(
            exact, labels, math.exp(low + span)
        ):
            high = low + span
        else:
            low = high - span
    return round(math.exp((low + high) / 2), 4)


def _likelihood_loss(logits: NDArray[np.float64], labels: NDArray[np.int64], temperature: float) -> float:
    scaled = logits / temperature
    scaled -= scaled.max(axis=1, keepdims=True)
    return float((np.log(np.exp(scaled).sum(axis=1)) - scaled[np.arange(len(labels)), labels]).mean())
