"""What the figures of a candidate say about deploying it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipelines.core.metrics import paired_difference, paired_interval, wilson
from pipelines.core.recipe import Gate
from pipelines.core.values import Interval

Hits = NDArray[np.bool_]

ACCEPTED = frozenset(("better", "not_worse", "same"))


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """`name` is better, not_worse, worse, too_few or same."""

    name: str
    reason: str

    @property
    def accepted(self) -> bool:
        return self.name in ACCEPTED


def against_champion(candidate: Hits, champion: Hits, version: int, gate: Gate) -> Verdict:
    """Judge by the interval of the accuracy difference on the same images [N].

    better: it lies above 0; not_worse: above -margin; worse: below 0. Anything else leaves open whether the candidate
    loses more than the margin, which more images would tell.
    """
    num_images = len(candidate)
    if num_images < gate.min_images:
        return Verdict(
            name="too_few",
            reason=f"{num_images} test images that neither model has learned from; at least {gate.min_images} are "
            "needed (gate.min_images)",
        )
    difference = paired_difference(candidate, champion, gate.confidence)
    figures = (
        f"accuracy {_percent(candidate)} against {_percent(champion)} of champion version {version} on the same "
        f"{num_images:,} test images: {_points(difference)}"
    )
    if difference.low > 0:
        return Verdict(name="better", reason=figures)
    if difference.low >= -gate.margin:
        return Verdict(name="not_worse", reason=f"{figures}, within the margin of {100 * gate.margin:g} points")
    if difference.high < 0:
        return Verdict(name="worse", reason=figures)
    return Verdict(
        name="too_few",
        reason=f"{figures}; a loss of more than {100 * gate.margin:g} points (gate.margin) cannot be ruled out"
        + _remedy(candidate, champion, gate),
    )


def _remedy(candidate: Hits, champion: Hits, gate: Gate) -> str:
    """How many images would tell, the shares of gains and losses staying as they are."""
    gains, losses = int((candidate & ~champion).sum()), int((champion & ~candidate).sum())
    for tenths in range(11, 1000):
        more = tenths / 10
        images = more * len(candidate)
        if paired_interval(more * gains, more * losses, images, gate.confidence).low >= -gate.margin:
            return f"; about {images:,.0f} images would tell, or a larger margin accepts it"
    return ""


def against_majority(candidate: Hits, labels: NDArray[np.int64], gate: Gate) -> Verdict:
    """Judge a first model: the lower end of its accuracy [N] must beat always answering the commonest class."""
    num_images = len(labels)
    if not num_images:
        return Verdict(name="too_few", reason="no test image is free of near-duplicates in train or val")
    share = float(np.bincount(labels).max() / num_images)
    accuracy = wilson(int(candidate.sum()), num_images, gate.confidence)
    figures = (
        f"accuracy {_interval(accuracy)} on {num_images:,} test images; always answering the commonest class has "
        f"{100 * share:.2f}%"
    )
    if accuracy.low > share:
        return Verdict(name="better", reason=f"first model: {figures}")
    return Verdict(name="too_few" if accuracy.value > share else "worse", reason=f"first model: {figures}")


def _percent(hits: Hits) -> str:
    return f"{100 * hits.mean():.2f}%"


def _interval(value: Interval) -> str:
    return f"{100 * value.value:.2f}% [{100 * value.low:.2f}, {100 * value.high:.2f}]"


def _points(value: Interval) -> str:
    return f"{100 * value.value:+.2f} points [{100 * value.low:+.2f}, {100 * value.high:+.2f}]"
