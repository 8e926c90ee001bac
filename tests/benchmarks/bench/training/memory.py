"""Section `memory`: peak host memory of a whole training, started as a person would."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from bench.memory import Sample, sample
from bench.photographs import arrange, find
from bench.report import REPOSITORY, Report, Table
from bench.training.cifar import load_recipe
from pipelines.core.errors import UserError
from pipelines.core.recipe import Recipe, to_dict

_EVERY_S = 0.2


def run(options: argparse.Namespace) -> Report:
    """Raises UserError where the training fails."""
    recipe = load_recipe(options, "clothing")
    with tempfile.TemporaryDirectory(prefix="darkroom-bench-") as place:
        work = Path(place)
        found = find(options.data, work).limited(options.limit)
        folder = arrange(found, work / "arranged")
        samples, seconds = _watched(folder, options, recipe, work)
    peak = max(samples, key=lambda one: one.pss_bytes)
    rss = max(one.rss_bytes for one in samples)
    counts = found.counts()
    title = f"{counts['train']:,} train, {counts['val']:,} val, {recipe.training.epochs} epochs, {seconds:.0f} s"
    rows = [[f"{peak.pss_bytes / 1e6:,.0f}", f"{rss / 1e6:,.0f}", f"{samples[-1].pss_bytes / 1e6:,.0f}"]]
    columns = ["peak, MB (PSS)", "peak, MB (RSS)", "at the end, MB (PSS)"]
    return Report(
        figures={
            "counts": counts,
            "recipe": to_dict(recipe),
            "peak_pss_bytes": peak.pss_bytes,
            "peak_rss_bytes": rss,
            "samples": [asdict(one) for one in samples[:: max(1, len(samples) // 100)]],
        },
        tables=[Table(title=title, columns=columns, rows=rows)],
        notes=["pages of files that are mapped or cached count while they are mapped"],
    )


def _watched(folder: Path, options: argparse.Namespace, recipe: Recipe, work: Path) -> tuple[list[Sample], float]:
    """Memory of the process and its workers five times a second."""
    path = options.recipe or REPOSITORY / "pipelines" / "recipes" / "clothing.toml"
    command = [sys.executable, "-m", "pipelines.training", "--recipe", str(path), "--data", str(folder)]
    command += ["--out", str(work / "out"), "--set", json.dumps(options.set)]
    samples: list[Sample] = []
    began = time.perf_counter()
    with (work / "log").open("w+") as log:
        process = subprocess.Popen(command, cwd=REPOSITORY, stdout=log, stderr=log)
        try:
            while process.poll() is None:
                found = sample(len(samples), process.pid)
                if found.pss_bytes:
                    samples.append(found)
                time.sleep(_EVERY_S)
        finally:
            process.kill()
        if process.returncode or not samples:
            log.seek(0)
            raise UserError(f"{' '.join(command)}: exit code {process.returncode}\n{log.read()[-2000:]}")
    return samples, time.perf_counter() - began
