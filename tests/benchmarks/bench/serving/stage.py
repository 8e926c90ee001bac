"""What every section begins with: photographs, a package, its bento, and a folder that goes away."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.harness import progress
from bench.photographs import Photographs, find_or_make
from bench.serving import packages, workload
from bench.serving.load import Load
from pipelines import settings
from pipelines.adapters.packaging import build_bento
from pipelines.core.model_package import ModelPackage

MADE_SIDE = 450
"""Of photographs that are generated where there are none, px."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    options: argparse.Namespace
    found: Photographs
    work: Path
    """Gone after the section."""
    kept: Path
    """Packages and peers' environments, for the next run too."""

    def images(self, count: int | None = None) -> list[Path]:
        """Distinct photographs: as many as the options say, or `count`; 0 takes all."""
        least = 1 if self.options.tiny else workload.MIN_IMAGES
        return workload.distinct(self.found, self.options.images if count is None else count, least=least)

    def package(self, size: str = "", precision: str = "") -> ModelPackage:
        """By default the one that the options name."""
        options = self.options
        chosen = (size or options.model, precision or options.precision)
        return packages.package(self.found, self.kept / "packages", *chosen, tiny=options.tiny)

    def bento(self, package: ModelPackage) -> Path:
        """Built from the sources as they are now."""
        out = self.work / f"bento-{package.name}-{package.variant}"
        return out if out.is_dir() else build_bento(package, version=1, out=out)

    def load(self, files: list[Path], seed: int = 0) -> Load:
        """A closed loop of one turn over the images in an order of its own."""
        return Load(
            files=files,
            order=workload.shuffled(len(files), seed),
            connections=self.options.connections,
            seconds=self.options.seconds,
            headers=self.options.header,
        )

    def variables(self, **more: str) -> dict[str, str]:
        """Of our worker's environment: what the section needs, threads, and what --env adds to it or changes."""
        threads = {
            "DARKROOM_THREADS": str(self.options.threads),
            "DARKROOM_CONCURRENCY": str(self.options.concurrency),
        }
        return {**threads, **more, **self.options.env}

    def turned(self, load: Load, seed: int) -> Load:
        return dataclasses.replace(load, order=workload.shuffled(len(load.files), seed))

    def notes(self) -> list[str]:
        made = [] if self.options.data else [f"no DATA: {len(self.found.files)} generated JPEGs, {MADE_SIDE} px"]
        size = packages.recipe_for(self.options.model, tiny=self.options.tiny)
        package = f"{size.model.backbone} at {size.preprocessing.width} px, {self.options.precision}"
        return [*made, f"model: {package}, trained for a few steps only, {self.package().digest[:12]}"]


@contextlib.contextmanager
def stage(options: argparse.Namespace) -> Iterator[Stage]:
    """Raises SourceError where DATA has no photographs."""
    kept = Path(options.work).expanduser() if options.work else settings.load().home / "bench-serving"
    kept.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="darkroom-bench-") as folder:
        work = Path(folder)
        progress("looking for photographs")
        found = find_or_make(options.data, work, count=options.made, side=MADE_SIDE)
        yield Stage(options=options, found=found, work=work, kept=kept)
