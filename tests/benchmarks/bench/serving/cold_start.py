"""Section `cold-start`: from the start of a process to its first 200 of /readyz, the model loaded, verified and warmed.

The first start of a new bento compiles its modules to bytecode and stands apart. Files are in the page cache.
"""

from __future__ import annotations

import argparse

from bench.harness import Interval, bootstrap, progress
from bench.report import Bar, Report, Table
from bench.serving.ours import worker
from bench.serving.packages import PRECISIONS, SIZES
from bench.serving.stage import Stage, stage
from pipelines.core.cores import num_cores

BAR_S = 3.0


def run(options: argparse.Namespace) -> Report:
    """Raises PlatformError where a process does not become ready, SourceError without photographs."""
    with stage(options) as place:
        found = {(size, precision): _starts(place, size, precision) for size in SIZES for precision in PRECISIONS}
        num_bytes = {key: _model_bytes(place, *key) for key in found}
    rows, figures = [], {}
    for (size, precision), (first, later) in found.items():
        name = f"{size} {precision}"
        megabytes = f"{num_bytes[size, precision] / 1e6:,.1f}"
        rows.append([name, megabytes, f"{first:.2f}", later.text(), f"{max(first, later.high):.2f}"])
        figures[name] = {"first_s": first, "later_s": later.as_json(), "model_bytes": num_bytes[size, precision]}
    columns = ["", "model, MB", "first start, s", "later starts, s", "worst"]
    return Report(
        figures=figures,
        tables=[Table(title=f"{options.starts} later starts of each", columns=columns, rows=rows)],
        bars=[
            Bar(
                what=f"{' '.join(key)}: s to ready, the first start or the upper end of later ones",
                bar=BAR_S,
                found=max(first, later.high),
                at_most=True,
            )
            for key, (first, later) in found.items()
        ],
    )


def _starts(place: Stage, size: str, precision: str) -> tuple[float, Interval]:
    """Seconds of the first start of a new bento, and of those after it."""
    bento = place.bento(place.package(size, precision))
    variables = place.variables(DARKROOM_CONCURRENCY=str(num_cores()))
    seconds = []
    for _ in range(1 + place.options.starts):
        with worker(bento, place.work, variables, name=f"{size} {precision}") as serving:
            seconds.append(serving.ready_s)
    progress(f"{size} {precision}: {', '.join(f'{one:.2f}' for one in seconds)} s")
    return seconds[0], bootstrap(seconds[1:])


def _model_bytes(place: Stage, size: str, precision: str) -> int:
    package = place.package(size, precision)
    return (package.folder / package.variants[package.variant].file).stat().st_size
