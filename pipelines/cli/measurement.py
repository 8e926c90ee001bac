"""`darkroom evaluate`: a package measured on somebody's class folders, through the serving path."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines.core.cores import num_cores
from pipelines.core.errors import ImageError, UserError
from pipelines.core.inference import Classifier
from pipelines.core.metrics import Metrics, measure
from pipelines.core.recipe import Source
from pipelines.core.results import to_json
from pipelines.core.scoring import score_each
from pipelines.core.sources import SourceFile, open_source
from pipelines.core.sources.files import Reader

if TYPE_CHECKING:
    from pipelines.core.model_package import ModelPackage
    from pipelines.settings import Settings


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What a package does on labelled images. Refused images and unknown classes are named, and not measured."""

    metrics: Metrics
    unknown_classes: dict[str, int]
    """Images by class that the model does not know."""
    refused: list[dict[str, str]]
    """uri, reason and detail of files that are no images we accept."""
    notes: list[str]

    def as_json(self) -> dict[str, Any]:
        accuracy = self.metrics.accuracy
        return {
            "accuracy": accuracy.value,
            "accuracy_low": accuracy.low,
            "accuracy_high": accuracy.high,
            "num_images": self.metrics.num_images,
            "unknown_classes": self.unknown_classes,
            "refused": self.refused,
            "notes": self.notes,
            "metrics": to_json(self.metrics),
        }


def measure_folder(
    settings: Settings,
    package: ModelPackage,
    data: str,
    *,
    split: str,
    confidence: float,
    progress: Callable[[int, int], None] | None = None,
) -> Measurement:
    """Measure on every labelled image of a folder (or archive, table, s3:// prefix), or on one of its splits.

    `progress` is told how many images are done, of how many. Raises SourceError for what cannot be listed and UserError
    where no image is left to measure.
    """
    notes: list[str] = []
    files = _list(settings, data, split, notes)
    positions = {name: label for label, name in enumerate(package.class_names)}
    unknown = Counter(file.label for file in files if file.label is not None and file.label not in positions)
    known = [file for file in files if file.label in positions]
    if not known:
        theirs = ", ".join(sorted(unknown)) or "none"
        raise UserError(
            f"{data}: no image of a class that the model knows; classes there: {theirs}; "
            f"the model's: {', '.join(package.class_names)}"
        )
    done = 0

    def advance(num_images: int) -> None:
        nonlocal done
        done += num_images
        if progress is not None:
            progress(done, len(known))

    reader = Reader(settings.home / "cache", settings.s3_endpoint_url)
    logits, refused = score_each(Classifier(package), known, lambda file: _read(reader, file), num_cores(), advance)
    kept = np.array([position not in refused for position in range(len(known))])
    if not kept.any():
        raise UserError(f"{data}: none of {len(known)} files is an image; the first: {refused[0].detail}")
    labels = np.array([positions[str(file.label)] for file in known], np.int64)
    return Measurement(
        metrics=measure(logits[kept], labels[kept], package.class_names, package.temperature, confidence),
        unknown_classes={str(name): count for name, count in sorted(unknown.items())},
        refused=[
            {"uri": known[position].uri, "reason": error.reason, "detail": error.detail}
            for position, error in sorted(refused.items())
        ],
        notes=notes,
    )


def _list(settings: Settings, data: str, split: str, notes: list[str]) -> list[SourceFile]:
    uri = data if "://" in data else str(Path(data).expanduser().absolute())
    source = open_source(Source(uri=uri), home=settings.home, endpoint_url=settings.s3_endpoint_url)
    files = [
        file
        for interval in sorted(source.intervals())
        for file in source.files(interval, notes)
        if not file.tombstone and (not split or file.split == split)
    ]
    if split and not files:
        raise UserError(f"--split {split}: {data} has no images in such a split")
    return files


def _read(reader: Reader, file: SourceFile) -> bytes:
    if file.reason is not None:
        raise ImageError(file.reason, file.detail or file.reason)
    return reader.read(file.uri, file.archive, file.offset, file.size_bytes)
