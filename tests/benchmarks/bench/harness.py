"""Contenders side by side: interleaved rounds in random order, a bare control first and last, ratios with intervals.

A machine that others use too makes one absolute time worthless. So every round runs each contender once and a piece of
work that is nobody's (the *bare control*) before and after; a round whose two controls differ, or in which the
hypervisor took time away, is dropped and counted; and what is compared are ratios within a round.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

MIN_ROUNDS = 7
MAX_CONTROL_DIFFERENCE = 0.05
MAX_STEAL = 0.02
_RESAMPLES = 10_000

Contender = Callable[[], float]
"""Does its work once and returns its rate: more is better."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A median or mean with its 95% interval."""

    value: float
    low: float
    high: float

    def as_json(self) -> dict[str, float]:
        return {"value": self.value, "low": self.low, "high": self.high}

    def text(self, unit: str = "", digits: int = 2) -> str:
        return f"{self.value:,.{digits}f}{unit} ({self.low:,.{digits}f} to {self.high:,.{digits}f})"


@dataclass(frozen=True, kw_only=True)
class Rounds:
    """What the kept rounds showed."""

    rates: Mapping[str, Sequence[float]]
    """Of each contender, one a kept round, in the order of the rounds."""
    controls: Sequence[tuple[float, float]]
    dropped: Sequence[str] = field(default_factory=tuple)
    """Why each dropped round was dropped."""
    kept: Sequence[int] = field(default_factory=tuple)
    """Numbers of the kept rounds, from 0, for whoever noted more than a rate in each."""

    def rate(self, name: str) -> Interval:
        return bootstrap(self.rates[name])

    def ratio(self, name: str, to: str) -> Interval:
        """Median of the per-round ratios of two contenders."""
        pairs = zip(self.rates[name], self.rates[to], strict=True)
        return bootstrap([one / other for one, other in pairs])

    def as_json(self) -> dict[str, Any]:
        return {
            "rounds": len(self.controls),
            "dropped": list(self.dropped),
            "control": [list(pair) for pair in self.controls],
            "rates": {name: {**self.rate(name).as_json(), "each": list(found)} for name, found in self.rates.items()},
        }


def interleave(
    contenders: Mapping[str, Contender], control: Contender, *, rounds: int = MIN_ROUNDS, strict: bool = True
) -> Rounds:
    """Rounds until `rounds` of them are kept, at most three times as many; `strict` False keeps disturbed ones too.

    Raises RuntimeError where the machine is too noisy for as many as two good rounds.
    """
    chance = random.Random(0)
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    controls: list[tuple[float, float]] = []
    dropped: list[str] = []
    kept: list[int] = []
    for number in range(3 * rounds):
        if len(controls) == rounds:
            break
        names = list(contenders)
        chance.shuffle(names)
        clock = StealClock()
        first = control()
        found = {name: contenders[name]() for name in names}
        last = control()
        why = _disturbed(first, last, clock.share()) if strict else ""
        progress(f"round {number + 1}: {', '.join(f'{name} {rate:,.1f}' for name, rate in found.items())} {why}")
        if why:
            dropped.append(why)
            continue
        kept.append(number)
        controls.append((first, last))
        for name, rate in found.items():
            rates[name].append(rate)
    if len(controls) < min(2, rounds):
        raise RuntimeError(f"{len(dropped)} rounds and no two undisturbed ones: {dropped[-1]}")
    return Rounds(rates=rates, controls=controls, dropped=tuple(dropped), kept=tuple(kept))


def _disturbed(first: float, last: float, steal: float) -> str:
    difference = abs(first / last - 1)
    if difference > MAX_CONTROL_DIFFERENCE:
        return f"controls differ by {difference:.1%}"
    return f"steal {steal:.1%}" if steal > MAX_STEAL else ""


def bootstrap(numbers: Sequence[float]) -> Interval:
    """The median and the percentile interval of medians of resamples."""
    values = np.asarray(numbers, np.float64)
    chance = np.random.default_rng(0)
    medians = np.median(values[chance.integers(0, len(values), (_RESAMPLES, len(values)))], axis=1)
    low, high = np.percentile(medians, (2.5, 97.5))
    return Interval(value=float(np.median(values)), low=float(low), high=float(high))


# Student's t at 97.5% by degrees of freedom: few seeds have wide tails, which a bootstrap of five would not show.
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)


def mean_interval(numbers: Sequence[float]) -> Interval:
    """The mean of a few seeds with Student's 95% interval; a single number has an endless one."""
    values = np.asarray(numbers, np.float64)
    mean = float(values.mean())
    if len(values) < 2:
        return Interval(value=mean, low=float("-inf"), high=float("inf"))
    degrees = len(values) - 1
    t = _T[degrees - 1] if degrees <= len(_T) else 1.96 + 2.5 / degrees
    half = t * float(values.std(ddof=1)) / len(values) ** 0.5
    return Interval(value=mean, low=mean - half, high=mean + half)


class StealClock:
    """Time that the hypervisor gave to others, since this was made."""

    def __init__(self) -> None:
        self._start = _steal()

    def share(self) -> float:
        stolen, total = (now - then for now, then in zip(_steal(), self._start, strict=True))
        return stolen / total if total else 0.0


def _steal() -> tuple[int, int]:
    """Stolen and all clock ticks of the machine; zeros where the kernel does not tell."""
    try:
        ticks = [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    except (OSError, ValueError):
        return 0, 0
    return (ticks[7], sum(ticks)) if len(ticks) == 8 else (0, sum(ticks))


def progress(text: str) -> None:
    """A line for whoever waits, on a terminal only."""
    if sys.stderr.isatty():
        sys.stderr.write(text + "\n")
        sys.stderr.flush()
