"""`training_set`: which images of a snapshot are learned from, and how much each counts.

The features are what was known of each image at its own event time: a point-in-time join in the feature store.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.core import manifest
from pipelines.core.errors import NotFound, RecipeError
from pipelines.core.features import STATISTICS, check_feature, conditions
from pipelines.core.ports import FeatureRepository
from pipelines.core.recipe import Features
from pipelines.core.values import Snapshotted, TrainingSet


def training_set(
    *, snapshot: Snapshotted, snapshot_manifest: Path, features: Features, repository: FeatureRepository, out: Path
) -> TrainingSet:
    """Write training_set.parquet, sorted by image_id.

    Filters and weights act on the training split only: validation and test images stay what will be met in service.
    Raises RecipeError for a wrong filter or weight, and NotFound where an image has no features.
    """
    filters = conditions(features.where)
    if features.weight_by:
        check_feature("features.weight_by", features.weight_by)
    columns = ["image_id", "label", "split", "event_timestamp", "interval"]
    rows = manifest.read(snapshot_manifest, columns)
    rows = rows.filter(pc.not_equal(rows.column("split"), manifest.EXCLUDED)).sort_by("image_id")
    known = repository.historical(rows.select(["image_id", "event_timestamp"]), list(STATISTICS)).sort_by("image_id")
    _require_all(rows, known)
    training = np.asarray(pc.equal(rows.column("split"), "train"))
    passes = np.ones(rows.num_rows, dtype=bool)
    for condition in filters:
        passes &= condition.holds(known.column(condition.feature).to_numpy())
    keep = passes | ~training
    weights = _weights(known, training & keep, features.weight_by)
    table = rows.select(["image_id", "label", "split"]).append_column("weight", pa.array(weights, pa.float32()))
    for statistic, kind in STATISTICS.items():
        table = table.append_column(statistic, known.column(statistic).cast(kind))
    table = table.filter(pa.array(keep))
    _require_classes(snapshot, table, features)
    pq.write_table(table, out / "training_set.parquet", compression="zstd")
    return TrainingSet(
        snapshot_id=snapshot.snapshot_id,
        num_images=table.num_rows,
        num_filtered=rows.num_rows - table.num_rows,
        features=tuple(STATISTICS),
    )


def _require_all(rows: pa.Table, known: pa.Table) -> None:
    assert known.column("image_id").equals(rows.column("image_id")), "the feature store answered for other images"
    missing = rows.filter(pc.is_null(known.column(next(iter(STATISTICS))), nan_is_null=True))
    if missing.num_rows:
        intervals = sorted(set(missing.column("interval").to_pylist()))
        raise NotFound(
            f"feature store: {missing.num_rows:,} of {rows.num_rows:,} images have no features, such as "
            f"{missing.column('image_id')[0]}; ingest interval {', '.join(intervals[:5])} again"
        )


def _weights(known: pa.Table, training: npt.NDArray[np.bool_], feature: str) -> npt.NDArray[np.float32]:
    """Weights [N] with mean 1 over the training images; 1 for all others."""
    weights = np.ones(known.num_rows, np.float32)
    if not feature or not training.any():
        return weights
    values = known.column(feature).to_numpy().astype(np.float64)[training]
    if values.min() < 0 or values.sum() == 0:
        raise RecipeError(f"features.weight_by = {feature!r}: weights must not be negative, nor all zero")
    weights[training] = values / values.mean()
    return weights


def _require_classes(snapshot: Snapshotted, table: pa.Table, features: Features) -> None:
    left = set(table.filter(pc.equal(table.column("split"), "train")).column("label").to_pylist())
    gone = sorted(set(snapshot.class_names) - left) if features.where else []
    if gone:
        raise RecipeError(f"features.where = {list(features.where)}: no training image of {', '.join(gone)} passes")
