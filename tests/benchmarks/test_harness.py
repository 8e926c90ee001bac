"""What a benchmark concludes from its numbers."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
from bench import clocks, harness
from bench.memory import Sample, growth, sample
from bench.report import Bar


def turns(log: list[str], name: str, rates: list[float]) -> Callable[[], float]:
    """A contender that notes its turns and answers with the next of its rates, the last one again and again."""

    def run() -> float:
        log.append(name)
        return rates.pop(0) if len(rates) > 1 else rates[0]

    return run


def test_every_round_begins_and_ends_with_the_control_and_shuffles_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "_steal", lambda: (0, 1))
    log: list[str] = []
    contenders = {name: turns(log, name, [1.0]) for name in "abc"}
    rounds = harness.interleave(contenders, turns(log, "control", [1.0]), rounds=7)
    parts = ["".join(log[start + 1 : start + 4]) for start in range(0, len(log), 5)]
    assert len(rounds.controls) == len(parts) == 7
    assert log[0::5] == log[4::5] == ["control"] * 7
    assert {"".join(sorted(part)) for part in parts} == {"abc"}
    assert len(set(parts)) > 1


def test_rounds_whose_controls_differ_are_dropped_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "_steal", lambda: (0, 1))
    control = turns([], "control", [100.0, 90.0, 100.0])
    rounds = harness.interleave({"ours": turns([], "ours", [50.0, 4.0])}, control, rounds=3)
    assert rounds.rates["ours"] == [4.0, 4.0, 4.0]
    assert rounds.dropped == ("controls differ by 11.1%",)


def test_rounds_in_which_the_hypervisor_took_time_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter([(0, 0), (3, 100), (3, 100), (4, 200), (4, 200), (4, 300)])
    monkeypatch.setattr(harness, "_steal", lambda: next(ticks))
    rounds = harness.interleave({"ours": lambda: 1.0}, lambda: 1.0, rounds=2)
    assert rounds.dropped == ("steal 3.0%",)


def test_a_machine_that_is_too_noisy_gives_no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "_steal", lambda: (0, 1))
    with pytest.raises(RuntimeError, match="controls differ"):
        harness.interleave({"ours": lambda: 1.0}, turns([], "control", [1.0, 2.0] * 50), rounds=4)


def test_ratios_are_taken_within_a_round() -> None:
    rates = {"ours": [2.0, 20.0, 200.0], "reference": [1.0, 10.0, 100.0]}
    rounds = harness.Rounds(rates=rates, controls=[(1.0, 1.0)] * 3)
    assert rounds.ratio("ours", "reference").as_json() == {"value": 2.0, "low": 2.0, "high": 2.0}
    assert rounds.rate("ours").value == 20.0


def test_the_interval_of_few_seeds_is_students() -> None:
    found = harness.mean_interval([1, 2, 3, 4, 5])
    assert found.value == 3
    assert found.high - found.value == pytest.approx(2.776 * 2.5**0.5 / 5**0.5, rel=1e-3)
    assert harness.mean_interval([1.0]).low == float("-inf")


@pytest.mark.parametrize(("found", "at_most", "met"), [(2.0, False, True), (1.9, False, False), (2.1, True, False)])
def test_a_bar_is_met_from_its_own_side(found: float, at_most: bool, met: bool) -> None:
    assert Bar(what="", bar=2.0, found=found, at_most=at_most).met is met


def test_setting_up_is_not_compiling(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([0.0, 30.0, 35.0, 35.5, 36.0, 40.0])
    monkeypatch.setattr("bench.clocks.time.perf_counter", lambda: next(now))
    clock = clocks.EpochClock()
    clock.on_start([], 1)  # after 30 s
    for step in range(3):
        clock.on_step_end(step + 1, 3)
    clock.on_finish([])
    assert clock.curve.compile_s == 4.5  # the first step's 5 s, less the usual half
    assert clock.curve.seconds == 40.0


def _samples(bytes_of: list[int]) -> list[Sample]:
    return [Sample(step=step, pss_bytes=one, rss_bytes=one) for step, one in enumerate(bytes_of)]


def test_memory_that_grows_early_is_flat_and_a_leak_is_not() -> None:
    filling = [min(500_000_000, 100_000_000 + 40_000_000 * step) for step in range(40)]
    leaking = [500_000_000 + 1_000_000 * step for step in range(40)]
    assert growth(_samples(filling)).flat
    assert growth(_samples(leaking)).grown_bytes == 10_000_000
    assert not growth(_samples(leaking)).flat


def test_memory_counts_what_runs_below() -> None:
    alone = sample(0).pss_bytes
    holds = "held = bytearray(b'x' * 50_000_000); print('ready', flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", holds], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        assert sample(1).pss_bytes > alone + 40_000_000
        child.communicate(b"\n")
