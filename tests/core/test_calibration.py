"""Temperature scaling finds the temperature that generated the labels."""

from __future__ import annotations

import numpy as np
import pytest

from pipelines.core.calibration import fit_temperature


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_it_recovers_a_known_temperature(temperature: float) -> None:
    random = np.random.default_rng(0)
    logits = random.normal(0, 3, (20_000, 5)).astype(np.float32)
    noise = random.gumbel(size=logits.shape)  # argmax of logits + Gumbel noise is a draw from the softmax
    labels = (logits / temperature + noise).argmax(axis=1)
    assert fit_temperature(logits, labels) == pytest.approx(temperature, rel=0.03)


def test_no_images_say_nothing() -> None:
    assert fit_temperature(np.zeros((0, 3), np.float32), np.zeros(0, np.int64)) == 1.0


def test_right_every_time_is_not_certainty() -> None:
    """Three of three right leave one doubt in five: the right class gets 4/5, the two others 1/10 each."""
    temperature = fit_temperature(np.eye(3, dtype=np.float32), np.arange(3))
    assert temperature == pytest.approx(1 / np.log(8), rel=1e-3)


def test_more_right_answers_leave_less_doubt() -> None:
    found = [fit_temperature(np.tile(np.eye(3, dtype=np.float32), (n, 1)), np.tile(np.arange(3), n)) for n in (1, 10)]
    assert found[1] < found[0]
