"""Which variants of a model may serve, and which one does."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipelines.core.inference import Runtime
from pipelines.core.metrics import paired_difference, wilson
from pipelines.core.pixelset import DecodedImages
from pipelines.core.recipe import Export
from pipelines.core.values import Interval

_CONFIDENCE = 0.95
_WARM_UPS = 5
_MAX_RUNS = 200
_MAX_S = 2.0
_CLEARLY_FASTER = 0.9
"""A variant must need less than this share of fp32's time: the choice must not hang on the noise of a measurement."""


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A variant on the validation images."""

    accuracy: Interval
    passed: bool
    reason: str
    disagreement: float = 0.0
    """Share of answers that differ from fp32's."""
    accuracy_loss: Interval | None = None
    """Against fp32 on the same images."""


def judge_fp32(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> Judged:
    """fp32 has passed its parity already; this only says how good it is."""
    right = int((logits.argmax(axis=1) == labels).sum())
    return Judged(accuracy=wilson(right, len(labels), _CONFIDENCE), passed=True, reason="the reference")


def judge_int8(
    fp32: NDArray[np.float32], int8: NDArray[np.float32], labels: NDArray[np.int64], bounds: Export
) -> Judged:
    """Compare the logits [N, C] of both on the same images. N is at least 1."""
    first, second = fp32.argmax(axis=1), int8.argmax(axis=1)
    disagreement = float((first != second).mean())
    loss = paired_difference(first == labels, second == labels, _CONFIDENCE)
    failures = []
    if disagreement > bounds.max_int8_disagreement:
        failures.append(f"{disagreement:.2%} of its answers differ from fp32's, {bounds.max_int8_disagreement:.2%} may")
    if loss.high > bounds.max_int8_accuracy_loss:
        failures.append(
            f"it may lose up to {loss.high:.2%} of accuracy, {bounds.max_int8_accuracy_loss:.2%} is the most allowed"
        )
    return Judged(
        accuracy=wilson(int((second == labels).sum()), len(labels), _CONFIDENCE),
        passed=not failures,
        reason="; ".join(failures) or "within the bounds",
        disagreement=disagreement,
        accuracy_loss=loss,
    )


def measure_latency_ms(model: bytes, images: DecodedImages) -> float:
    """Median milliseconds that one thread needs for one image, over at most 200 runs or 2 seconds."""
    runtime = Runtime(model, threads=1, provider="cpu")
    times: list[float] = []
    deadline = time.perf_counter() + _MAX_S
    for turn in range(_MAX_RUNS):
        pixels = images.image(turn % len(images))
        start = time.perf_counter()
        runtime.run(1, lambda _, pixels=pixels: pixels)  # type: ignore[misc]
        if turn >= _WARM_UPS:
            times.append(time.perf_counter() - start)
        if times and time.perf_counter() > deadline:
            break
    return round(float(np.median(times)) * 1000, 4)


def choose(judged: Mapping[str, Judged], latency_ms: Mapping[str, float], budget_ms: float) -> tuple[str, str]:
    """The variant that serves, and why.

    With a budget it is the most accurate one within it; without one, or where none is within it, the fastest.
    """
    passed = [name for name, one in judged.items() if one.passed]
    fastest = "fp32"
    for name in passed:
        if latency_ms[name] < _CLEARLY_FASTER * latency_ms[fastest]:
            fastest = name
    within = [name for name in passed if latency_ms[name] <= budget_ms]
    if within:
        best = max(within, key=lambda name: (judged[name].accuracy.value, name == "fp32"))
        return best, "the most accurate within the latency budget"
    if budget_ms:
        return fastest, "the fastest, though none is within the latency budget"
    others = len(passed) > 1
    return fastest, ("the fastest that passed" if others else "the only one that passed")
