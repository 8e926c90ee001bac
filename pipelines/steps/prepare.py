"""`prepare`: the training and validation images as a pixel set, decoded once or encoded for streaming."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.core import layout, pixelset, preparation
from pipelines.core.datasets import blob_key
from pipelines.core.errors import SourceError
from pipelines.core.preparation import Images
from pipelines.core.recipe import Recipe
from pipelines.core.storage import Storage, opener_of
from pipelines.core.values import Prepared

_MEND = "ingest its interval again, or withdraw the image"


def prepare(training_set: Path, class_names: Sequence[str], storage: Storage, recipe: Recipe, out: Path) -> Prepared:
    """Write the pixel set of training_set.parquet's train and val rows, on all cores of this process.

    Validation pixels are those of the serving path; how training images are stored is for `core.layout` to say. Test
    images are not decoded here: evaluation sends their bytes through the serving path. Memory grows with the columns of
    the table only. Raises SourceError for no training images, DarkroomError naming a stored image that does not decode.
    """
    table = pq.read_table(training_set, columns=["image_id", "label", "split", "weight"])
    labels = {name: label for label, name in enumerate(class_names)}
    splits = {split: _images(table, split, labels) for split in ("train", "val")}
    counts = {split: len(images) for split, images in splits.items()}
    if not counts["train"]:
        raise SourceError(f"{training_set}: no row of split 'train'; lower split.val_share and split.test_share")
    layouts = {"train": layout.training(recipe, counts["train"]), "val": layout.evaluation(recipe)}
    preparation.write(splits, layouts, opener_of(storage), out, _MEND)
    pixelset.write_index(out, class_names=class_names, preprocessing=layouts["val"].spec.to_json(), splits=counts)
    return Prepared(num_train=counts["train"], num_val=counts["val"], class_names=tuple(class_names))


def _images(table: pa.Table, split: str, labels: Mapping[str, int]) -> Images:
    part = table.filter(pc.equal(table.column("split"), split))
    ids = part.column("image_id").to_pylist()
    return Images(
        keys=[blob_key(image_id) for image_id in ids],
        ids=ids,
        labels=[labels[name] for name in part.column("label").to_pylist()],
        weights=part.column("weight").to_pylist(),
    )
