"""`prepare`: the training and validation images as a pixel set, decoded once or encoded for streaming."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipelines.core import layout, pixelset, preparation, training_rows
from pipelines.core.recipe import Recipe
from pipelines.core.storage import Storage, opener_of
from pipelines.core.values import Prepared


def prepare(training_set: Path, class_names: Sequence[str], storage: Storage, recipe: Recipe, out: Path) -> Prepared:
    """Write the pixel set of training_set.parquet's train and val rows, on all cores of this process.

    Validation pixels are those of the serving path; how training images are stored is for `core.layout` to say. Test
    images are not decoded here: evaluation sends their bytes through the serving path. Memory grows with the columns of
    the table only. Raises SourceError for no training images, DarkroomError naming a stored image that does not decode.
    """
    labels = {name: label for label, name in enumerate(class_names)}
    splits = {split: training_rows.images(part, labels) for split, part in training_rows.read(training_set).items()}
    counts = {split: len(images) for split, images in splits.items()}
    layouts = {"train": layout.training(recipe, counts["train"]), "val": layout.evaluation(recipe)}
    preparation.write(splits, layouts, opener_of(storage), out, training_rows.MEND)
    pixelset.write_index(out, class_names=class_names, preprocessing=layouts["val"].spec.to_json(), splits=counts)
    return Prepared(num_train=counts["train"], num_val=counts["val"], class_names=tuple(class_names))
