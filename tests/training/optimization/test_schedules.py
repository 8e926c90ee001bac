"""Rates over time, by value."""

from __future__ import annotations

import pytest

from pipelines.core.recipe import Training
from pipelines.training.optimization.schedules import factor


def test_cosine_falls_from_the_peak_to_zero() -> None:
    training = Training(schedule="cosine", warmup_share=0.0)
    factors = [factor(step, 100, training) for step in (0, 25, 50, 75, 100)]
    assert factors == pytest.approx([1.0, 0.853553, 0.5, 0.146447, 0.0], abs=1e-6)


def test_warmup_rises_linearly_from_above_zero_and_meets_the_cosine_at_its_peak() -> None:
    training = Training(schedule="cosine", warmup_share=0.04)
    factors = [factor(step, 100, training) for step in range(6)]
    assert factors[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert factor(52, 100, training) == pytest.approx(0.5)


def test_trapezoid_stays_at_the_peak_and_falls_linearly_at_the_end() -> None:
    training = Training(schedule="trapezoid", warmup_share=0.1, cooldown_share=0.4)
    factors = [factor(step, 100, training) for step in (0, 10, 59, 60, 70, 80, 99, 100)]
    assert factors == pytest.approx([1 / 11, 1.0, 1.0, 1.0, 0.75, 0.5, 0.025, 0.0])


def test_trapezoid_that_cools_all_the_time_is_the_linear_decay_of_airbench() -> None:
    training = Training(schedule="trapezoid", warmup_share=0.0, cooldown_share=1.0)
    assert [factor(step, 200, training) for step in range(200)] == pytest.approx(
        [1 - step / 200 for step in range(200)]
    )


def test_trapezoid_without_cooldown_keeps_the_peak() -> None:
    training = Training(schedule="trapezoid", warmup_share=0.0, cooldown_share=0.0)
    assert {factor(step, 10, training) for step in range(10)} == {1.0}


@pytest.mark.parametrize("schedule", ["cosine", "trapezoid"])
@pytest.mark.parametrize("num_steps", [1, 2, 3, 7])
def test_no_step_of_even_a_short_training_stands_still(schedule: str, num_steps: int) -> None:
    training = Training(schedule=schedule, warmup_share=0.1)
    assert all(0 < factor(step, num_steps, training) <= 1 for step in range(num_steps))
