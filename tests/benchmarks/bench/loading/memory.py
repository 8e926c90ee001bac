"""Section `memory`: host memory of a training that streams a million images, and a control that leaks on purpose.

The million images are spans of one shard that holds a few hundred JPEGs again and again: the tables that grow with the
number of images are as large as they would be, the files are not.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from bench.harness import progress
from bench.memory import Growth, Sample, growth, sample
from bench.photographs import Photographs, find_or_make
from bench.report import Bar, Report, Table
from pipelines.core import pixelset
from pipelines.core.recipe import Recipe, from_dict

_POINTS = 40


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a child process does."""

    folder: Path
    num_classes: int
    steps: int
    leak_bytes: int


def run(options: argparse.Namespace) -> Report:
    """Both runs in processes of their own, one after the other."""
    with tempfile.TemporaryDirectory(prefix="darkroom-bench-") as folder:
        place = Path(folder)
        found = find_or_make(options.data, place, count=300, side=450)
        seen = write_million(found, place / "million", options.images)
        job = {"folder": place / "million", "num_classes": len(found.class_names), "steps": options.steps}
        honest = _child(Job(**job, leak_bytes=0))
        leaking = _child(Job(**job, leak_bytes=options.leak))
    return _report(options, seen, {"streaming": honest, "leaking on purpose": leaking})


def write_million(found: Photographs, folder: Path, num_images: int, distinct: int = 300) -> int:
    """A pixel set of `num_images` encoded images, of which `distinct` differ; how many do."""
    files = list(found.limited(distinct).files)
    folder.mkdir()
    writer = pixelset.EncodedWriter(folder, "train", len(files))
    for one in files:
        data = one.path.read_bytes()
        height, width = _size(data)
        writer.append(data, height, width)
    writer.close()
    repeats = np.arange(num_images) % len(files)
    for name in ("spans", "sizes"):
        path = folder / f"train-{name}.npy"
        np.save(path, np.load(path)[repeats])
    labels = np.array([one.label for one in files])[repeats].tolist()
    ids = [f"{number:064x}" for number in range(num_images)]
    pixelset.write_split(folder, "train", labels=labels, weights=[1.0] * num_images, ids=ids)
    spec = _recipe().preprocessing
    pixelset.write_index(
        folder,
        class_names=found.class_names,
        preprocessing={"height": spec.height, "width": spec.width, "fit": spec.fit},
        splits={"train": num_images},
    )
    return len(files)


def _size(data: bytes) -> tuple[int, int]:
    from pipelines.core.preprocessing import decode

    found = decode(data)
    return found.height, found.width


def _recipe() -> Recipe:
    return from_dict(
        {
            "name": "million",
            "preprocessing": {"height": 64, "width": 64},
            "model": {"backbone": "small", "width": 0.5},
            "training": {"epochs": 1, "batch_size": 32, "threads": 1, "device": "cpu"},
            "augmentation": {"crop": "resized"},
            "loading": {"strategy": "stream"},
        }
    )


def _child(job: Job) -> list[Sample]:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(stream, (job,))


def stream(job: Job) -> list[Sample]:
    """Train the first steps of an epoch; memory at 40 points of it."""
    from bench.ours import OurLoop

    recipe = _recipe()
    data = pixelset.load(job.folder)
    loop = OurLoop(data.splits["train"], recipe, job.num_classes)
    kept: list[np.ndarray] = []
    samples: list[Sample] = []
    every = max(1, job.steps // _POINTS)
    for step, batch in enumerate(_first(loop.batches(), job.steps), start=1):
        loop.step(batch)
        if job.leak_bytes:
            kept.append(np.ones(job.leak_bytes, np.uint8))
        if step % every == 0:
            samples.append(sample(step))
            progress(f"step {step}: {samples[-1].pss_bytes / 1e6:,.0f} MB")
    loop.close()
    return samples


def _first(batches: Iterator[Any], count: int) -> Iterator[Any]:
    return islice(batches, count)


def _report(options: argparse.Namespace, distinct: int, runs: dict[str, list[Sample]]) -> Report:
    found = {name: growth(samples) for name, samples in runs.items()}
    if found["leaking on purpose"].flat:
        raise RuntimeError("the control that leaks passed as flat: this check shows nothing; take more steps")
    columns = ["", "first point", "middle", "end", "peak, MB (PSS)", "peak RSS", "growth from the middle", "flat"]
    rows = [_row(name, runs[name], found[name]) for name in runs]
    title = f"{options.images:,} images ({distinct} different files), {options.steps:,} steps of 32, streamed"
    return Report(
        figures={
            "images": options.images,
            "steps": options.steps,
            "runs": {
                name: {"samples": [asdict(one) for one in samples], **found[name].as_json()}
                for name, samples in runs.items()
            },
        },
        tables=[Table(title=title, columns=columns, rows=rows)],
        bars=[
            Bar(
                what="growth from the middle on, MB",
                bar=found["streaming"].tolerance_bytes / 1e6,
                found=found["streaming"].grown_bytes / 1e6,
                at_most=True,
            )
        ],
        notes=[f"the control that forgets {options.leak:,} bytes a step fails, as it must"],
    )


def _row(name: str, samples: list[Sample], found: Growth) -> list[str]:
    bytes_of = [one.pss_bytes for one in samples]
    points = [
        bytes_of[0],
        bytes_of[len(bytes_of) // 2],
        bytes_of[-1],
        max(bytes_of),
        max(one.rss_bytes for one in samples),
    ]
    grown = f"{found.grown_bytes / 1e6:+,.1f} of {found.tolerance_bytes / 1e6:,.1f} MB"
    return [name, *(f"{value / 1e6:,.0f}" for value in points), grown, str(found.flat)]
