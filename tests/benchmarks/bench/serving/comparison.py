"""Servers beside the bare control, round by round."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.harness import Interval, Rounds, bootstrap, interleave
from bench.serving.load import Measurement

Turn = Callable[[], Measurement]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The kept rounds. The bare control of a round is the mean of its first and its last turn."""

    rounds: Rounds
    turns: Mapping[str, Sequence[Measurement]]
    """Of each server, one a kept round."""

    @property
    def bare_ms(self) -> list[float]:
        return [(1000 / first + 1000 / last) / 2 for first, last in self.rounds.controls]

    def share_of_bare(self, name: str) -> Interval:
        """Bare CPU time a request, divided by the server's."""
        pairs = zip(self.bare_ms, self.turns[name], strict=True)
        return bootstrap([bare / turn.cpu_ms() for bare, turn in pairs])

    def above_bare_ms(self, name: str) -> Interval:
        """CPU ms a request that the server needs more than bare."""
        pairs = zip(self.bare_ms, self.turns[name], strict=True)
        return bootstrap([turn.cpu_ms() - bare for bare, turn in pairs])

    def above_bare_ratio(self, name: str, to: str) -> Interval:
        """What one server needs more than bare, as a share of what another does."""
        triples = zip(self.bare_ms, self.turns[name], self.turns[to], strict=True)
        return bootstrap([(one.cpu_ms() - bare) / (other.cpu_ms() - bare) for bare, one, other in triples])

    def throughput_ratio(self, name: str, to: str) -> Interval:
        pairs = zip(self.turns[name], self.turns[to], strict=True)
        return bootstrap([one.per_s / other.per_s for one, other in pairs])

    def of(self, name: str, figure: Callable[[Measurement], float]) -> Interval:
        return bootstrap([figure(turn) for turn in self.turns[name]])

    def rows(self) -> list[list[str]]:
        """A table's rows: COLUMNS."""
        bare = bootstrap(self.bare_ms)
        rows = [["bare", bare.text(), "1", "0", "", "", ""]]
        for name, turns in self.turns.items():
            parts = turns[0].server_cpu_s
            split = ", ".join(f"{part} {self.of(name, _part_ms(part)).value:.2f}" for part in parts)
            rows.append(
                [
                    name,
                    self.of(name, Measurement.cpu_ms).text(),
                    self.share_of_bare(name).text(digits=3),
                    self.above_bare_ms(name).text(),
                    split if len(parts) > 1 else "",
                    self.of(name, lambda turn: turn.per_s).text(digits=1),
                    f"{self.of(name, lambda turn: turn.client_cpu_ms).value:.2f}",
                ]
            )
        return rows

    def as_json(self) -> dict[str, Any]:
        return {
            **self.rounds.as_json(),
            "bare_cpu_ms": {**bootstrap(self.bare_ms).as_json(), "each": self.bare_ms},
            "servers": {name: self._json_of(name) for name in self.turns},
        }

    def _json_of(self, name: str) -> dict[str, Any]:
        parts = self.turns[name][0].server_cpu_s
        return {
            "cpu_ms": self.of(name, Measurement.cpu_ms).as_json(),
            "cpu_ms_by_part": {part: self.of(name, _part_ms(part)).as_json() for part in parts},
            "bare_to_served": self.share_of_bare(name).as_json(),
            "above_bare_ms": self.above_bare_ms(name).as_json(),
            "requests_per_s": self.of(name, lambda turn: turn.per_s).as_json(),
            "client_cpu_ms": self.of(name, lambda turn: turn.client_cpu_ms).as_json(),
        }


COLUMNS = ("", "CPU ms a request", "bare to it", "above bare, ms", "of that", "requests/s", "client's CPU ms")


def _part_ms(part: str) -> Callable[[Measurement], float]:
    return lambda turn: turn.cpu_ms(part)


def side_by_side(turns: Mapping[str, Turn], bare: Turn, options: argparse.Namespace) -> Comparison:
    """Raises what `interleave` raises."""
    taken: dict[str, list[Measurement]] = {name: [] for name in turns}

    def noted(name: str) -> Callable[[], float]:
        def run() -> float:
            taken[name].append(turns[name]())
            return taken[name][-1].per_cpu_s

        return run

    rounds = interleave(
        {name: noted(name) for name in turns},
        lambda: bare().per_cpu_s,
        rounds=options.rounds,
        strict=options.strict,
    )
    kept = {name: [found[number] for number in rounds.kept] for name, found in taken.items()}
    return Comparison(rounds=rounds, turns=kept)
