"""Section `cache`: what an answer from memory costs, and a trace in which most images have been asked for before."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.harness import bootstrap, progress
from bench.report import Bar, Report, Table
from bench.serving import metrics
from bench.serving.load import Measurement, send
from bench.serving.ours import worker
from bench.serving.servers import Server
from bench.serving.stage import Stage, stage
from bench.serving.workload import ZipfTrace, shuffled, zipf
from pipelines.core.cores import num_cores

HIT_BAR_MS, RATE_BAR = 0.5, 1000.0
CONNECTIONS = 16
"""Enough that a core is never idle while others wait for the model."""
REQUESTS_PER_IMAGE = 3
"""Length of the trace by images: at three, 80% repeats leave a catalogue that is mostly asked for, some of it often."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One process, fresh: the trace first, then every image once more, from memory."""

    trace: Measurement
    hit_ratio: float
    hits: Measurement


def run(options: argparse.Namespace) -> Report:
    """Raises SourceError without photographs, RuntimeError where an image of the second pass was not in memory."""
    with stage(options) as place:
        files = place.images(0)
        trace = zipf(len(files), REQUESTS_PER_IMAGE * len(files), options.repeats)
        trials = [_trial(place, files, trace, number) for number in range(options.trials)]
        notes = place.notes()
    return _report(trials, trace, len(files), notes)


def _trial(place: Stage, files: list[Path], trace: ZipfTrace, number: int) -> Trial:
    package = place.package()
    # Every core has a batch, as the platform starts it; the cache holds all answers.
    variables = place.variables(DARKROOM_CONCURRENCY=str(num_cores()))
    with worker(place.bento(package), place.work, variables, name=f"cache {number}") as serving:
        server, load = serving.server, dataclasses.replace(place.load(files), connections=CONNECTIONS)
        trace_run = send(server, dataclasses.replace(load, order=trace.order, seconds=0.0))
        hit, miss = metrics.cache_lookups(server)
        hits = _hits(place, server, [files[image] for image in sorted(set(trace.order))])
    progress(f"trial {number + 1}: {trace_run.per_s:,.0f} requests/s, a hit {hits.cpu_ms():.3f} CPU ms")
    return Trial(trace=trace_run, hit_ratio=hit / (hit + miss), hits=hits)


def _hits(place: Stage, server: Server, files: list[Path]) -> Measurement:
    """Images that are in memory, again and again for one turn. Raises RuntimeError where one was not."""
    before = metrics.cache_lookups(server)[1]
    found = send(server, dataclasses.replace(place.load(files), order=shuffled(len(files), 1), connections=CONNECTIONS))
    missed = metrics.cache_lookups(server)[1] - before
    if missed:
        raise RuntimeError(f"{missed:.0f} images were no longer in the cache: raise DARKROOM_CACHE_BYTES by --env")
    return found


def _report(trials: Sequence[Trial], trace: ZipfTrace, num_images: int, notes: list[str]) -> Report:
    rate = bootstrap([one.trace.per_s for one in trials])
    hit_ms = bootstrap([one.hits.cpu_ms() for one in trials])
    hit_rate = bootstrap([one.hits.per_s for one in trials])
    trace_ms = bootstrap([one.trace.cpu_ms() for one in trials])
    client_ms = bootstrap([one.trace.client_cpu_ms for one in trials])
    ratio = bootstrap([one.hit_ratio for one in trials])
    rows = [
        ["hits only", hit_ms.text(digits=3), hit_rate.text(digits=0), "1"],
        ["the trace", trace_ms.text(digits=3), rate.text(digits=0), f"{ratio.value:.3f}"],
    ]
    title = (
        f"{len(trace.order):,} requests for {len(set(trace.order)):,} of {num_images:,} photographs, Zipf with "
        f"exponent {trace.exponent:.3f}: {trace.repeats:.1%} repeats; {num_cores()} cores, {CONNECTIONS} connections, "
        f"{len(trials)} fresh processes"
    )
    return Report(
        figures={
            "requests": len(trace.order),
            "exponent": trace.exponent,
            "repeats": trace.repeats,
            "hit_cpu_ms": hit_ms.as_json(),
            "hits_per_s": hit_rate.as_json(),
            "trace_cpu_ms": trace_ms.as_json(),
            "trace_requests_per_s": rate.as_json(),
            "trace_client_cpu_ms": client_ms.as_json(),
            "hit_ratio": ratio.as_json(),
        },
        tables=[Table(title=title, columns=["", "CPU ms a request", "requests/s", "hit ratio"], rows=rows)],
        bars=[
            Bar(what="CPU ms of a hit, upper end", bar=HIT_BAR_MS, found=hit_ms.high, at_most=True),
            Bar(what="requests/s of the trace, lower end", bar=RATE_BAR, found=rate.low),
        ],
        notes=[*notes, f"the client took {client_ms.text(digits=3)} CPU ms a request of the same cores"],
    )
