"""An interval that asks to be accepted, and the numbers that describe it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.core.checks import MAX_EXAMPLES
from pipelines.core.features import STATISTICS
from pipelines.core.recipe import Recipe
from pipelines.core.values import Assembled


@dataclass(frozen=True, kw_only=True)
class Moments:
    """Count, mean and standard deviation of each statistic."""

    num_images: int
    mean: Mapping[str, float]
    deviation: Mapping[str, float]


class MomentSums:
    """Moments of statistics that come in parts."""

    def __init__(self) -> None:
        self._num_images = 0
        self._sums = {name: np.zeros(2) for name in STATISTICS}

    def add(self, statistics: pa.Table) -> None:
        self._num_images += statistics.num_rows
        for name, sums in self._sums.items():
            values = statistics[name].to_numpy().astype(np.float64)
            finite = values[np.isfinite(values)]
            sums += finite.sum(), (finite * finite).sum()

    def moments(self) -> Moments:
        count = max(self._num_images, 1)
        mean = {name: float(sums[0] / count) for name, sums in self._sums.items()}
        square = {name: float(sums[1] / count) for name, sums in self._sums.items()}
        deviation = {name: max(square[name] - mean[name] ** 2, 0.0) ** 0.5 for name in STATISTICS}
        return Moments(num_images=self._num_images, mean=mean, deviation=deviation)


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """An interval that asks to be accepted: what `assemble` left of it, and its place in the dataset."""

    recipe: Recipe
    assembled: Assembled
    tables: Mapping[str, pa.Table]
    live: pa.Table
    """The manifest without tombstones."""
    before: pa.Table
    """The accepted set without this interval."""
    after: pa.Table
    """The set that the interval would make."""
    head: Moments
    """Statistics of the accepted images."""


def class_counts(rows: pa.Table) -> dict[str, int]:
    """Images of each class."""
    return {one["values"]: one["counts"] for one in pc.value_counts(rows["label"]).to_pylist()}


def lines(uris: pa.ChunkedArray) -> str:
    """The first few source URIs, one a line."""
    return "\n".join(uris[:MAX_EXAMPLES].to_pylist())


def of_class(live: pa.Table, label: str) -> pa.ChunkedArray:
    """Source URIs of the images of a class."""
    return live["source_uri"].filter(pc.equal(live["label"], label))
