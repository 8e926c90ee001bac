"""Learning rate over time, as a factor on each group's peak."""

from __future__ import annotations

import math

from pipelines.core.recipe import Training


def factor(step: int, num_steps: int, training: Training) -> float:
    """Share in 0..1 of the peak rate at a step, counted from 0: linear warm-up, then a cosine or a trapezoid.

    Never 0 before the last step is over. A trapezoid with cooldown_share = 1 and no warm-up is airbench's
    1 - step / num_steps.
    """
    warmup = training.warmup_share * num_steps
    rising = (step + 1) / (warmup + 1)
    if rising < 1:
        return rising
    if training.schedule == "cosine":
        progress = (step - warmup) / (num_steps - warmup)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, max(0.0, progress))))
    cooldown = training.cooldown_share * num_steps
    return min(1.0, max(0, num_steps - step) / cooldown) if cooldown else 1.0
