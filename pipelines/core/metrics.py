"""Figures of a classifier on labelled images, each with the interval that its number of images allows.

Proportions (accuracy, top-k, precision, recall) carry Wilson's score interval (Wilson 1927, JASA 22:209): resampling a
perfect score only ever finds perfect scores, so a bootstrap of 100 right out of 100 would claim [1, 1]. F1 is
2J / (1 + J), a monotone function of the Jaccard index J = TP / (TP + FP + FN), which is a proportion itself, so its
ends are Wilson's for J, mapped. What is no proportion (likelihood, calibration error) is bootstrapped, with a fixed
seed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from pipelines.core.values import Interval

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

NUM_RESAMPLES = 1000
NUM_BINS = 15
"""Equal-width bins of the calibration error, as in Guo et al. 2017."""
TOP_K = (2, 3, 5)
_SEED = 20240101
_CHUNK_BYTES = 64 << 20


@dataclass(frozen=True, kw_only=True)
class ClassMetrics:
    """One class against all others. `num_images` counts the images that truly are of the class."""

    class_name: str
    num_images: int
    precision: Interval
    recall: Interval
    f1: Interval


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """Everything measured on one set of images."""

    num_images: int
    confidence: float
    accuracy: Interval
    top_k: dict[str, Interval]
    """By k, for the k of TOP_K below the number of classes."""
    nll: Interval
    """Mean negative log-likelihood of the true class, nats, with the temperature."""
    nll_uncalibrated: Interval
    calibration_error: Interval
    calibration_error_uncalibrated: Interval
    temperature: float
    classes: tuple[ClassMetrics, ...]
    confusion: tuple[tuple[int, ...], ...]
    """Rows are true classes, columns predicted ones."""


def measure(
    logits: NDArray[np.floating], labels: Ints, class_names: Sequence[str], temperature: float, confidence: float = 0.95
) -> Metrics:
    """All metrics of float logits [N, C] against labels int64 [N] in 0..C-1; N must be at least 1."""
    ranked = rank(logits)
    confusion = confusion_matrix(labels, ranked[:, 0], len(class_names))
    nll_before, error_before = likelihood(logits, labels, 1.0, confidence)
    nll_after, error_after = likelihood(logits, labels, temperature, confidence)
    return Metrics(
        num_images=len(labels),
        confidence=confidence,
        accuracy=wilson(int(np.trace(confusion)), len(labels), confidence),
        top_k={
            str(k): wilson(int((ranked[:, :k] == labels[:, None]).any(axis=1).sum()), len(labels), confidence)
            for k in TOP_K
            if k < len(class_names)
        },
        nll=nll_after,
        nll_uncalibrated=nll_before,
        calibration_error=error_after,
        calibration_error_uncalibrated=error_before,
        temperature=temperature,
        classes=class_metrics(confusion, class_names, confidence),
        confusion=tuple(tuple(int(count) for count in row) for row in confusion),
    )


def rank(logits: NDArray[np.floating]) -> Ints:
    """The most probable labels of each image, best first, int64 [N, min(C, 5)]; the lower label wins a tie."""
    best = [np.argsort(-rows, axis=1, kind="stable")[:, : max(TOP_K)] for rows in _rows(logits)]
    return np.concatenate(best).astype(np.int64)


def _rows(logits: NDArray[np.floating]) -> Iterator[Floats]:
    """Slices of logits [N, C] as float64, so that 50,000 images of 1,000 classes need no copies of their size."""
    size = max(1, _CHUNK_BYTES // (8 * logits.shape[1]))
    for start in range(0, len(logits), size):
        yield logits[start : start + size].astype(np.float64)


def log_softmax(logits: Floats) -> Floats:
    """Log-probabilities of logits [N, C]."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)), dtype=np.float64)


def wilson(successes: int, trials: int, confidence: float) -> Interval:
    """A proportion with Wilson's score interval. No trials say nothing: 0 in [0, 1]."""
    if trials == 0:
        return Interval(value=0.0, low=0.0, high=1.0)
    z = _z(confidence)
    share = successes / trials
    centre = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z / (1 + z * z / trials) * (share * (1 - share) / trials + z * z / (4 * trials * trials)) ** 0.5
    return Interval(value=share, low=max(0.0, min(share, centre - half)), high=min(1.0, max(share, centre + half)))


def paired_difference(first: Bools, second: Bools, confidence: float) -> Interval:
    """Accuracy of `first` less that of `second` on the same images [N], N at least 1.

    The interval is the adjusted Wald of Bonett and Price 2012 (J. Educ. Behav. Stat. 37:479): one image is added to
    each kind of disagreement, so that two models which agree everywhere are not taken for equal with certainty.
    """
    return paired_interval(int((first & ~second).sum()), int((second & ~first).sum()), len(first), confidence)


def paired_interval(gains: float, losses: float, num_images: float, confidence: float) -> Interval:
    """The same from the numbers of images that only the first, or only the second, has right."""
    p_gain, p_loss = (gains + 1) / (num_images + 2), (losses + 1) / (num_images + 2)
    half = _z(confidence) * ((p_gain + p_loss - (p_gain - p_loss) ** 2) / (num_images + 2)) ** 0.5
    value, centre = (gains - losses) / num_images, p_gain - p_loss
    return Interval(value=value, low=max(-1.0, min(value, centre - half)), high=min(1.0, max(value, centre + half)))


def confusion_matrix(labels: Ints, predicted: Ints, num_classes: int) -> Ints:
    """Counts int64 [C, C]: rows are true classes, columns predicted ones."""
    flat = np.bincount(labels * num_classes + predicted, minlength=num_classes * num_classes)
    return flat.reshape(num_classes, num_classes).astype(np.int64)


def class_metrics(confusion: Ints, class_names: Sequence[str], confidence: float) -> tuple[ClassMetrics, ...]:
    """Precision, recall and F1 of each class; a ratio without images is 0 in [0, 1]."""
    found = []
    for label, name in enumerate(class_names):
        hits, true, predicted = (
            int(n) for n in (confusion[label, label], confusion[label].sum(), confusion[:, label].sum())
        )
        jaccard = wilson(hits, true + predicted - hits, confidence)
        value, low, high = (2 * j / (1 + j) for j in (jaccard.value, jaccard.low, jaccard.high))
        found.append(
            ClassMetrics(
                class_name=name,
                num_images=true,
                precision=wilson(hits, predicted, confidence),
                recall=wilson(hits, true, confidence),
                f1=Interval(value=value, low=low, high=high),
            )
        )
    return tuple(found)


def likelihood(
    logits: NDArray[np.floating], labels: Ints, temperature: float, confidence: float
) -> tuple[Interval, Interval]:
    """Mean negative log-likelihood (nats) and expected calibration error of logits [N, C] at a temperature.

    The calibration error (Guo et al. 2017, arXiv:1706.04599) is the sum over equal-width bins of confidence of
    |sum of (confidence less hit) in the bin| / N. Both are functions of sums over images, so they share resamples.
    """
    columns = np.zeros((len(labels), 1 + NUM_BINS))
    start = 0
    for scores in _rows(logits):
        mine = np.arange(start, start + len(scores))
        start += len(scores)
        log_probabilities = log_softmax(scores / temperature)
        predicted = log_probabilities.argmax(axis=1)
        columns[mine, 0] = -log_probabilities[np.arange(len(scores)), labels[mine]]
        sureness = np.exp(log_probabilities[np.arange(len(scores)), predicted])
        bins = np.minimum((sureness * NUM_BINS).astype(np.int64), NUM_BINS - 1)
        columns[mine, 1 + bins] = sureness - (predicted == labels[mine])

    def statistics(sums: Floats) -> Floats:
        means = sums / len(labels)
        return np.stack([means[:, 0], np.abs(means[:, 1:]).sum(axis=1)], axis=1)

    nll, calibration_error = bootstrap(columns, statistics, confidence)
    return nll, calibration_error


def bootstrap(columns: Floats, statistics: Callable[[Floats], Floats], confidence: float) -> list[Interval]:
    """Basic bootstrap intervals (Davison and Hinkley 1997, ch. 5) of non-negative functions of column sums.

    `columns` is [N, K]; `statistics` maps sums over images [B, K] to values [B, S]. The basic interval mirrors the
    resampled values at the estimate: a calibration error grows under resampling, and its percentiles would miss it.
    """
    num_images = len(columns)
    rng = np.random.default_rng(_SEED)
    sums = np.empty((NUM_RESAMPLES, columns.shape[1]))
    for start, size in _chunks(3 * num_images):
        drawn = rng.integers(0, num_images, size=(size, num_images)) + np.arange(size)[:, None] * num_images
        weights = np.bincount(drawn.ravel(), minlength=size * num_images).reshape(size, num_images)
        sums[start : start + size] = weights.astype(np.float64) @ columns
    values = statistics(columns.sum(axis=0, keepdims=True))[0]
    low, high = np.quantile(statistics(sums), _tails(confidence), axis=0)
    return [
        Interval(
            value=float(value),
            low=max(0.0, float(min(value, 2 * value - top))),
            high=float(max(value, 2 * value - bottom)),
        )
        for value, bottom, top in zip(values, low, high, strict=True)
    ]


def _chunks(width: int) -> Iterator[tuple[int, int]]:
    """(start, size) of the resamples that fit in _CHUNK_BYTES together, each of `width` 8-byte numbers."""
    size = max(1, _CHUNK_BYTES // (8 * width))
    for start in range(0, NUM_RESAMPLES, size):
        yield start, min(size, NUM_RESAMPLES - start)


def _tails(confidence: float) -> tuple[float, float]:
    return (1 - confidence) / 2, (1 + confidence) / 2


def _z(confidence: float) -> float:
    return NormalDist().inv_cdf((1 + confidence) / 2)
