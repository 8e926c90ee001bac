"""Which variant serves: bounds, budget, and no choice by noise."""

from __future__ import annotations

import numpy as np

from pipelines.core.recipe import Export
from pipelines.core.values import Interval
from pipelines.core.variants import Judged, choose, judge_int8


def _logits(answers: np.ndarray) -> np.ndarray:
    return np.eye(2, dtype=np.float32)[answers]


def test_int8_passes_only_where_it_answers_alike_and_surely_loses_little() -> None:
    labels = np.arange(2000) % 2
    good = _logits(labels)
    assert judge_int8(good, good, labels, Export()).passed
    few = judge_int8(good[:100], good[:100], labels[:100], Export())
    assert not few.passed
    assert "accuracy" in few.reason
    changed = labels.copy()
    changed[:40] = 1 - changed[:40]
    bad = judge_int8(good, _logits(changed), labels, Export())
    assert not bad.passed
    assert bad.disagreement == 0.02
    assert "2.00% of its answers differ" in bad.reason


def _judged(accuracy: float, passed: bool = True) -> Judged:
    return Judged(accuracy=Interval(value=accuracy, low=0, high=1), passed=passed, reason="")


def test_the_budget_chooses() -> None:
    judged = {"fp32": _judged(0.9), "int8": _judged(0.89)}
    latency = {"fp32": 10.0, "int8": 4.0}
    assert choose(judged, latency, 0.0)[0] == "int8"
    assert choose(judged, latency, 12.0)[0] == "fp32"
    assert choose(judged, latency, 5.0)[0] == "int8"
    serving, why = choose(judged, latency, 1.0)
    assert serving == "int8"
    assert "none is within" in why
    assert choose({**judged, "int8": _judged(0.89, passed=False)}, latency, 0.0)[0] == "fp32"


def test_a_hair_of_latency_does_not_choose() -> None:
    judged = {"fp32": _judged(0.9), "int8": _judged(0.9)}
    assert choose(judged, {"fp32": 1.0, "int8": 0.97}, 0.0)[0] == "fp32"
