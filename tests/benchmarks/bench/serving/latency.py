"""Section `latency`: how long requests take that arrive at their own times, at half and at most of what is possible,
and how long those that are not refused take at more than that.

Open loop: a request counts from when it was due, sent or not, so that a server that stalls cannot hide who waited.
Arrivals come evenly (one fixed rate) and as a Poisson process of the same rate, which is how strangers come.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.harness import Interval, bootstrap, progress
from bench.report import Bar, Report, Table
from bench.serving import workload
from bench.serving.cost import NO_CACHE
from bench.serving.load import Load, Measurement, send
from bench.serving.ours import worker
from bench.serving.servers import Server
from bench.serving.stage import Stage, stage
from pipelines.core.cores import num_cores

PROBE = Path(__file__).parent / "probes" / "collector"
SHARES = (0.5, 0.8)
OVERLOADS = (1.5, 3.0)
ARRIVALS: dict[str, Callable[[float, float], list[float]]] = {"even": workload.evenly, "Poisson": workload.poisson}
_LOADS = [
    *((share, arrivals) for share in SHARES for arrivals in ARRIVALS),
    *((share, "Poisson") for share in OVERLOADS),
]
P99_BAR_MS, P99_TO_P50_BAR, PAUSE_BAR_MS, REFUSED_BAR_PERCENT = 100.0, 3.0, 20.0, 1.0
_CLOSED_CONNECTIONS, _OPEN_CONNECTIONS, _OVERLOAD_CONNECTIONS = 16, 64, 256


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One open loop."""

    share: float
    arrivals: str
    percentiles_ms: tuple[float, float, float]
    """p50, p95, p99 of those that were answered."""
    refused_share: float
    silence_ms: float
    """The longest time without an answer while somebody waited for one."""
    collections_ms: Sequence[float]
    """Every pause of the garbage collector."""


def run(options: argparse.Namespace) -> Report:
    """Raises SourceError without photographs, PlatformError where a request fails."""
    with stage(options) as place:
        package, log = place.package(), place.work / "collections"
        variables = place.variables(**NO_CACHE, DARKROOM_CONCURRENCY=str(num_cores()), BENCH_COLLECTIONS=str(log))
        with worker(place.bento(package), place.work, variables, probe=PROBE) as serving:
            load = place.load(place.images())
            capacity = _capacity(serving.server, load, options)
            trials = [
                _trial(place, serving.server, load, log, share, arrivals, share * capacity)
                for _ in range(options.trials)
                for share, arrivals in _LOADS
            ]
        notes = place.notes()
    return _report(trials, capacity, notes)


def _capacity(server: Server, load: Load, options: argparse.Namespace) -> float:
    """Requests/s of a closed loop that always keeps some waiting, after one turn to warm up."""
    closed = dataclasses.replace(load, connections=_CLOSED_CONNECTIONS, seconds=options.latency_seconds / 3)
    send(server, closed)
    found = send(server, closed).per_s
    progress(f"capacity: {found:,.1f} requests/s")
    return found


def _trial(place: Stage, server: Server, load: Load, log: Path, share: float, arrivals: str, rate: float) -> Trial:
    due = ARRIVALS[arrivals](rate, place.options.latency_seconds)
    known = len(_collections(log))
    connections = _OVERLOAD_CONNECTIONS if share in OVERLOADS else _OPEN_CONNECTIONS
    open_loop = dataclasses.replace(load, connections=connections, seconds=0.0, arrivals=due, expected=(200, 503))
    found = send(server, open_loop)
    answered = found.latencies_ms_of(200)
    p50, p95, p99 = (float(one) for one in np.percentile(answered, (50, 95, 99)))
    refused = 1 - len(answered) / found.requests
    progress(f"{share:.0%}, {arrivals}: p50 {p50:.1f} ms, p99 {p99:.1f} ms, refused {refused:.1%}")
    return Trial(
        share=share,
        arrivals=arrivals,
        percentiles_ms=(p50, p95, p99),
        refused_share=refused,
        silence_ms=longest_silence_ms(found),
        collections_ms=_collections(log)[known:],
    )


def longest_silence_ms(found: Measurement) -> float:
    """Between two answers, or between a request to an idle server and its answer."""
    longest, last_answer = 0.0, 0.0
    dues = sorted(due for due, _ in found.times)
    for number, end in enumerate(sorted(end for _, end in found.times)):
        # When `number` requests had been answered, the next one was waiting from its arrival on.
        longest = max(longest, end - max(last_answer, dues[number]))
        last_answer = end
    return 1000 * longest


def _collections(log: Path) -> list[float]:
    """Milliseconds of each garbage collection so far. Raises RuntimeError where the probe has seen none: starting alone
    makes some.
    """
    lines = log.read_text().splitlines() if log.exists() else []
    if not lines:
        raise RuntimeError("the probe saw no garbage collection, not even at the start: its silence would mean nothing")
    return [float(line.split()[1]) for line in lines]


def _report(trials: Sequence[Trial], capacity: float, notes: list[str]) -> Report:
    groups = {
        (share, arrivals): [one for one in trials if (one.share, one.arrivals) == (share, arrivals)]
        for share, arrivals in _LOADS
    }
    pauses = [pause for one in trials for pause in one.collections_ms]
    bars = [bar for (share, name), chosen in groups.items() if share == SHARES[-1] for bar in _bars(name, chosen)]
    bars.append(
        Bar(what="longest pause of the collector, ms", bar=PAUSE_BAR_MS, found=max(pauses, default=0.0), at_most=True)
    )
    columns = [
        "",
        "requests/s",
        "p50, ms",
        "p95, ms",
        "p99, ms",
        "refused",
        "longest silence, ms",
        "collections, longest, ms",
    ]
    title = f"open loop at shares of {capacity:,.1f} requests/s, {num_cores()} cores, client included"
    rows = [_row(f"{share:.0%}, {name}", share * capacity, chosen) for (share, name), chosen in groups.items()]
    figures = {f"{share:.0%}, {name}": _figures(share * capacity, chosen) for (share, name), chosen in groups.items()}
    return Report(
        figures={"capacity": capacity, "loads": figures},
        tables=[Table(title=title, columns=columns, rows=rows)],
        bars=bars,
        notes=[*notes, "cache off; latency counts from when a request was due"],
    )


def _percentile(chosen: Sequence[Trial], place: int) -> Interval:
    return bootstrap([one.percentiles_ms[place] for one in chosen])


def _refused(chosen: Sequence[Trial]) -> Interval:
    return bootstrap([one.refused_share for one in chosen])


def _p99_to_p50(chosen: Sequence[Trial]) -> Interval:
    return bootstrap([one.percentiles_ms[2] / one.percentiles_ms[0] for one in chosen])


def _bars(arrivals: str, chosen: Sequence[Trial]) -> list[Bar]:
    p99, ratio, refused = _percentile(chosen, 2).high, _p99_to_p50(chosen).high, _refused(chosen).high
    name = f"{chosen[0].share:.0%}, {arrivals}"
    return [
        Bar(what=f"p99 at {name}, ms, upper end", bar=P99_BAR_MS, found=p99, at_most=True),
        Bar(what=f"p99 to p50 at {name}, upper end", bar=P99_TO_P50_BAR, found=ratio, at_most=True),
        Bar(what=f"refused at {name}, %, upper end", bar=REFUSED_BAR_PERCENT, found=100 * refused, at_most=True),
    ]


def _row(name: str, rate: float, chosen: Sequence[Trial]) -> list[str]:
    pauses = [pause for one in chosen for pause in one.collections_ms]
    silence = max(one.silence_ms for one in chosen)
    texts = [_percentile(chosen, place).text(digits=1) for place in range(3)]
    return [
        name,
        f"{rate:,.1f}",
        *texts,
        f"{_refused(chosen).value:.1%}",
        f"{silence:.1f}",
        f"{len(pauses)}, {max(pauses, default=0.0):.2f}",
    ]


def _figures(rate: float, chosen: Sequence[Trial]) -> dict[str, object]:
    return {
        "rate": rate,
        **{name: _percentile(chosen, place).as_json() for place, name in enumerate(("p50_ms", "p95_ms", "p99_ms"))},
        "refused_share": _refused(chosen).as_json(),
        "p99_to_p50": _p99_to_p50(chosen).as_json(),
        "longest_silence_ms": max(one.silence_ms for one in chosen),
        "collections_ms": [pause for one in chosen for pause in one.collections_ms],
    }
