"""Figures against scikit-learn, published tables and values worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, log_loss, precision_recall_fscore_support, top_k_accuracy_score

from pipelines.core import metrics
from pipelines.core.values import Interval

NAMES = tuple("abcdef")


def answers(num_images: int = 400, skill: float = 2.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Random logits [N, 6] that favour the true labels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, len(NAMES), num_images)
    logits = rng.normal(size=(num_images, len(NAMES))).astype(np.float32)
    logits[np.arange(num_images), labels] += skill
    return logits, labels


def test_values_agree_with_scikit_learn() -> None:
    logits, labels = answers()
    found = metrics.measure(logits, labels, NAMES, temperature=0.7)
    predicted = logits.argmax(axis=1)
    assert found.num_images == 400
    assert found.accuracy.value == pytest.approx((predicted == labels).mean())
    assert np.array_equal(found.confusion, confusion_matrix(labels, predicted))
    for k in (2, 3, 5):
        assert found.top_k[str(k)].value == pytest.approx(top_k_accuracy_score(labels, logits, k=k))
    precision, recall, f1, support = precision_recall_fscore_support(labels, predicted)
    for index, one in enumerate(found.classes):
        assert one.class_name == NAMES[index]
        assert one.num_images == support[index]
        assert one.precision.value == pytest.approx(precision[index])
        assert one.recall.value == pytest.approx(recall[index])
        assert one.f1.value == pytest.approx(f1[index])
    for interval, temperature in ((found.nll, 0.7), (found.nll_uncalibrated, 1.0)):
        probabilities = np.exp(metrics.log_softmax(logits.astype(np.float64) / temperature))
        assert interval.value == pytest.approx(log_loss(labels, probabilities))


def test_every_interval_holds_its_value_and_is_the_same_each_time() -> None:
    logits, labels = answers(60)
    found = metrics.measure(logits, labels, NAMES, temperature=1.5)
    intervals = [found.accuracy, *found.top_k.values(), found.nll, found.nll_uncalibrated]
    intervals += [found.calibration_error, found.calibration_error_uncalibrated]
    intervals += [one for each in found.classes for one in (each.precision, each.recall, each.f1)]
    for one in intervals:
        assert 0 <= one.low <= one.value <= one.high
        assert one.low < one.high
    assert found == metrics.measure(logits, labels, NAMES, temperature=1.5)


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        # Newcombe 1998, Statistics in Medicine 17:857, table I, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_against_a_published_table(successes: int, trials: int, low: float, high: float) -> None:
    found = metrics.wilson(successes, trials, 0.95)
    assert found.low == pytest.approx(low, abs=5e-5)
    assert found.high == pytest.approx(high, abs=5e-5)


def test_a_perfect_score_on_few_images_is_not_certain() -> None:
    assert metrics.wilson(20, 20, 0.95).low < 0.85
    assert metrics.wilson(0, 0, 0.95) == Interval(value=0.0, low=0.0, high=1.0)


def test_f1_ends_by_hand() -> None:
    # 8 right, 1 false negative, 1 false positive: J = 8/10, whose Wilson ends are 0.4902 and 0.9433.
    found = metrics.class_metrics(np.array([[8, 1], [1, 0]]), ("a", "b"), 0.95)[0].f1
    assert found.value == pytest.approx(16 / 18)
    assert found.low == pytest.approx(2 * 0.4902 / 1.4902, abs=1e-4)
    assert found.high == pytest.approx(2 * 0.9433 / 1.9433, abs=1e-4)


def test_paired_difference_by_hand() -> None:
    # 100 images: 9 only the first has right, 3 only the second. p = 10/102 and 4/102 after the adjustment.
    first, second = np.ones(100, bool), np.ones(100, bool)
    second[:9] = False
    first[9:12] = False
    found = metrics.paired_difference(first, second, 0.95)
    half = 1.959964 * ((14 / 102 - (6 / 102) ** 2) / 102) ** 0.5
    assert found.value == pytest.approx(0.06)
    assert (found.low, found.high) == pytest.approx((6 / 102 - half, 6 / 102 + half), abs=1e-6)
    mirrored = metrics.paired_difference(second, first, 0.95)
    assert (mirrored.low, mirrored.high) == pytest.approx((-found.high, -found.low))


def test_two_models_that_agree_everywhere_are_not_equal_for_certain() -> None:
    same = np.ones(100, bool)
    found = metrics.paired_difference(same, same, 0.95)
    assert found.value == 0
    assert found.low < -0.02 < 0.02 < found.high


def test_calibration_error_by_hand() -> None:
    # Ten answers of confidence 0.9, six of them right, fall into one bin: |0.9 - 0.6|.
    logits = np.tile(np.log([[0.9, 0.1]]), (10, 1))
    labels = np.array([0] * 6 + [1] * 4)
    _, error = metrics.likelihood(logits, labels, 1.0, 0.95)
    assert error.value == pytest.approx(0.3)


def test_the_right_temperature_removes_the_calibration_error() -> None:
    rng = np.random.default_rng(1)
    calibrated = rng.normal(size=(4000, 6)) * 2
    probabilities = np.exp(metrics.log_softmax(calibrated))
    labels = (probabilities.cumsum(axis=1) > rng.random((4000, 1))).argmax(axis=1)
    found = metrics.measure(calibrated * 3, labels, NAMES, temperature=3.0)
    assert found.calibration_error.high < found.calibration_error_uncalibrated.low
    assert found.calibration_error.low < 0.01
    assert found.nll.high < found.nll_uncalibrated.low


def test_bootstrap_of_a_mean_has_the_width_of_the_normal_interval() -> None:
    values = np.random.default_rng(2).exponential(size=(2000, 1))
    (found,) = metrics.bootstrap(values, lambda sums: sums / len(values), 0.95)
    half = 1.96 * values.std() / len(values) ** 0.5
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.1)


def test_slices_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, labels = answers(300)
    whole = metrics.measure(logits, labels, NAMES, temperature=1.0)
    monkeypatch.setattr(metrics, "_CHUNK_BYTES", 1 << 14)
    assert metrics.measure(logits, labels, NAMES, temperature=1.0).confusion == whole.confusion
    assert metrics.measure(logits, labels, NAMES, temperature=1.0).nll.value == pytest.approx(whole.nll.value)


def test_two_classes_have_no_top_k() -> None:
    found = metrics.measure(np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([0, 0]), ("a", "b"), temperature=1.0)
    assert found.top_k == {}
    assert found.accuracy.value == 0.5
