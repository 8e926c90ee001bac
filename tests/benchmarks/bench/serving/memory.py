"""Section `memory`: what a worker holds after many requests, and a control that leaks on purpose.

The cache is kept so small that answers come and go all the time: every request is decoded or found, none is for free.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from bench.harness import progress
from bench.memory import Sample, sample
from bench.report import Bar, Report, Table
from bench.serving.load import Running
from bench.serving.ours import worker
from bench.serving.stage import Stage, stage
from bench.serving.workload import shuffled
from pipelines.core.cores import num_cores

PROBE = Path(__file__).parent / "probes" / "leak"
BAR_BYTES = 20_000_000
_CACHE_BYTES = 262_144
_MIN_SAMPLES = 10


def run(options: argparse.Namespace) -> Report:
    """Raises RuntimeError where the leaking control passes, since the check would show nothing then."""
    with stage(options) as place:
        honest = _watched(place, "honest", options.requests, {})
        leaking = _watched(place, "leaking", options.control_requests, {"BENCH_LEAK": str(options.leak)})
        notes = place.notes()
    runs = {"ours": honest, "leaking on purpose": leaking}
    found = {name: growth_bytes(samples) for name, samples in runs.items()}
    if found["leaking on purpose"] <= BAR_BYTES:
        raise RuntimeError(
            "the control that leaks passed: this check shows nothing; raise --leak or --control-requests"
        )
    return _report(options, runs, found, notes)


def _watched(place: Stage, name: str, num_requests: int, variables: dict[str, str]) -> list[Sample]:
    """PSS of the worker while a closed loop makes so many requests."""
    files = place.images()
    passes = -(-num_requests // len(files))
    order = shuffled(len(files), 0, passes)[:num_requests]
    load = dataclasses.replace(place.load(files), order=order, seconds=0.0, connections=2 * num_cores())
    settings = place.variables(
        DARKROOM_CONCURRENCY=str(num_cores()), DARKROOM_CACHE_BYTES=str(_CACHE_BYTES), **variables
    )
    bento, probe = place.bento(place.package()), PROBE if variables else None
    with worker(bento, place.work, settings, name=name, probe=probe) as serving:
        running = Running(serving.server, load)
        try:
            samples = _samples(running, serving.server.pids["worker"], place.options.sample_every)
            running.finish()
        finally:
            running.stop()
    progress(f"{name}: {len(samples)} looks at the memory")
    return samples


def _samples(running: Running, pid: int, every_s: float) -> list[Sample]:
    """Until the client has had all its answers."""
    samples: list[Sample] = []
    while not running.ended(every_s):
        samples.append(sample(len(samples), pid))
    return samples


def growth_bytes(samples: Sequence[Sample]) -> float:
    """PSS at the end less PSS at the middle: medians of a tenth of the samples each, since single ones jump.

    Raises RuntimeError where there are too few.
    """
    if len(samples) < _MIN_SAMPLES:
        raise RuntimeError(f"{len(samples)} looks at the memory are too few: lower --sample-every or raise --requests")
    bytes_of = np.array([one.pss_bytes for one in samples], np.float64)
    middle, few = len(bytes_of) // 2, max(1, len(bytes_of) // 10)
    return float(np.median(bytes_of[-few:]) - np.median(bytes_of[middle : middle + few]))


def _report(
    options: argparse.Namespace, runs: dict[str, list[Sample]], found: dict[str, float], notes: list[str]
) -> Report:
    counts = dict(zip(runs, (options.requests, options.control_requests), strict=True))
    return Report(
        figures={
            name: {
                "requests": counts[name],
                "growth_from_the_middle_bytes": found[name],
                "samples": [asdict(one) for one in samples[:: max(1, len(samples) // 200)]],
            }
            for name, samples in runs.items()
        },
        tables=[
            Table(
                title="PSS of one worker, MB",
                columns=["", "requests", "first look", "middle", "end", "peak", "growth from the middle"],
                rows=[_row(name, counts[name], samples, found[name]) for name, samples in runs.items()],
            )
        ],
        bars=[Bar(what="growth from the middle on, MB", bar=BAR_BYTES / 1e6, found=found["ours"] / 1e6, at_most=True)],
        notes=[
            *notes,
            f"a cache of {_CACHE_BYTES:,} bytes, so that answers come and go",
            f"the control that forgets {options.leak:,} bytes a request fails, as it must",
        ],
    )


def _row(name: str, num_requests: int, samples: Sequence[Sample], grown: float) -> list[str]:
    bytes_of = [one.pss_bytes for one in samples]
    points = (bytes_of[0], bytes_of[len(bytes_of) // 2], bytes_of[-1], max(bytes_of))
    return [name, f"{num_requests:,}", *(f"{one / 1e6:,.1f}" for one in points), f"{grown / 1e6:+,.1f}"]
