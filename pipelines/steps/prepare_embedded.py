"""`prepare` for training.mode = 'head': stored embeddings instead of training pixels."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.core import embedded, embedding, layout, pixelset, preparation, training_rows
from pipelines.core.errors import NotFound
from pipelines.core.ports import FeatureRepository
from pipelines.core.recipe import Preprocessing, Recipe
from pipelines.core.storage import Storage, opener_of
from pipelines.core.values import Prepared

log = logging.getLogger(__name__)

_MAX_CALIBRATION = 1000


def prepare_embedded(
    *,
    training_set: Path,
    snapshot_manifest: Path,
    class_names: Sequence[str],
    storage: Storage,
    repository: FeatureRepository,
    recipe: Recipe,
    out: Path,
) -> Prepared:
    """Write the embeddings of training_set.parquet's train and val rows, as known at each image's event time.

    Beside them a pixel set of what an export needs: the validation images, and some training images to calibrate on,
    in the embedder's size and fit, whatever the recipe's `preprocessing` says. Raises NotFound where images have no
    embedding, SourceError for no training images, DarkroomError naming a stored image that does not decode.
    """
    parts = training_rows.read(training_set)
    counts = {split: part.num_rows for split, part in parts.items()}
    view = embedding.view_name(recipe.features.embedding)
    known = pq.read_table(snapshot_manifest, columns=["image_id", "event_timestamp", "interval"])
    for split, part in parts.items():
        rows = known.take(pc.index_in(part.column("image_id"), value_set=known.column("image_id")))
        found = repository.embeddings(rows, view, embedded.embeddings_file(out, split))
        _require_all(rows, found, view)
    _write_pixels(parts, class_names, storage, recipe, out)
    embedded.write_index(out, view=view, splits=counts)
    return Prepared(num_train=counts["train"], num_val=counts["val"], class_names=tuple(class_names))


def _require_all(rows: pa.Table, found: npt.NDArray[np.bool_], view: str) -> None:
    if not found.all():
        missing = rows.filter(pa.array(~found))
        intervals = sorted(set(missing.column("interval").to_pylist()))
        raise NotFound(
            f"feature store: {missing.num_rows:,} of {rows.num_rows:,} images have no embedding in {view}, such as "
            f"{missing.column('image_id')[0]}; ingest interval {', '.join(intervals[:5])} again"
        )


def _write_pixels(
    parts: Mapping[str, pa.Table], class_names: Sequence[str], storage: Storage, recipe: Recipe, out: Path
) -> None:
    labels = {name: label for label, name in enumerate(class_names)}
    train = parts["train"]
    chosen = np.unique(np.linspace(0, train.num_rows - 1, min(_MAX_CALIBRATION, train.num_rows)).astype(np.int64))
    splits = {
        pixelset.CALIBRATION: training_rows.images(train.take(chosen), labels),
        "val": training_rows.images(parts["val"], labels),
    }
    like = layout.evaluation(recipe)
    _tell_of_other_pixels(recipe)
    preparation.write(splits, dict.fromkeys(splits, like), opener_of(storage), out, training_rows.MEND)
    counts = {split: len(images) for split, images in splits.items()}
    pixelset.write_index(out, class_names=class_names, preprocessing=like.spec.to_json(), splits=counts)
    every = training_rows.images(train, labels)
    pixelset.write_split(out, "train", labels=every.labels, weights=every.weights, ids=every.ids)


def _tell_of_other_pixels(recipe: Recipe) -> None:
    """A recipe that says nothing of its pixels need not hear of them either."""
    asked, taken = recipe.preprocessing, embedding.pixels(recipe.features.embedding)
    if asked not in (Preprocessing(), taken):
        log.warning(
            "preprocessing = %d x %d %s: not used, pixels of training.mode = 'head' are the embedding's, %d x %d %s",
            *(asked.height, asked.width, asked.fit, taken.height, taken.width, taken.fit),
        )
