"""Section `overhead`: CPU milliseconds that serving adds to a request, the model's work held equal.

Every request is decoded and classified alone, as the bare control does, so that nothing is won or lost by batches. A
variant is a set of environment variables of our worker; all variants take turns in the same rounds.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Mapping

from bench.report import Bar, Report, Table
from bench.serving.answers import compare
from bench.serving.comparison import COLUMNS, Comparison, side_by_side
from bench.serving.control import bare
from bench.serving.cost import turns
from bench.serving.ours import worker
from bench.serving.stage import stage

ALONE = {"DARKROOM_MAX_BATCH": "1"}
VARIANTS: Mapping[str, Mapping[str, str]] = {
    "as it is": {"DARKROOM_CACHE_BYTES": "0"},
    # One byte holds no answer: every image is hashed and looked up, and none is found.
    "every image new to the cache": {"DARKROOM_CACHE_BYTES": "1"},
}
BAR_MS = 0.3
BAR_TRACED_MS = 0.5
TRACED = "traced"
"""A variant of this name is held to the bar with tracing."""


def run(options: argparse.Namespace) -> Report:
    """Raises RuntimeError where answers differ, SourceError without photographs."""
    variants = {**VARIANTS, **dict(options.variant)}
    with stage(options) as place, contextlib.ExitStack() as stack:
        files, package = place.images(), place.package()
        control = stack.enter_context(bare(package, files, threads=options.threads, concurrency=options.concurrency))
        bento = place.bento(package)
        servers = [
            stack.enter_context(worker(bento, place.work, place.variables(**{**ALONE, **variables}), name=name)).server
            for name, variables in variants.items()
        ]
        load = place.load(files)
        compare(servers, load, control.probabilities())
        found = side_by_side(turns(place, servers, load), lambda: control.turn(options.seconds), options)
        notes = place.notes()
    return _report(found, variants, [*notes, "images alone through the model: DARKROOM_MAX_BATCH=1"])


def _report(found: Comparison, variants: Mapping[str, Mapping[str, str]], notes: list[str]) -> Report:
    bars = [
        Bar(
            what=f"CPU ms above bare, {name}, upper end",
            bar=BAR_TRACED_MS if name == TRACED else BAR_MS,
            found=found.above_bare_ms(name).high,
            at_most=True,
        )
        for name in variants
    ]
    described = [
        f"{name}: {', '.join(f'{key}={value}' for key, value in chosen.items())}" for name, chosen in variants.items()
    ]
    return Report(
        figures={**found.as_json(), "variants": {name: dict(chosen) for name, chosen in variants.items()}},
        tables=[Table(title=f"{len(found.bare_ms)} rounds", columns=COLUMNS, rows=found.rows())],
        bars=bars,
        notes=[*notes, *described, f"{len(found.rounds.dropped)} disturbed rounds dropped"],
    )
