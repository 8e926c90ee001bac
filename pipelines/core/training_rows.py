"""Rows of a training set as the images of a pixel set: what both ways of preparing begin with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.core.datasets import blob_key
from pipelines.core.errors import SourceError
from pipelines.core.preparation import Images

MEND = "ingest its interval again, or withdraw the image"
"""What helps where a stored image does not decode."""


def read(training_set: Path) -> dict[str, pa.Table]:
    """The rows of 'train' and 'val' of training_set.parquet. Raises SourceError where there are none to train on."""
    table = pq.read_table(training_set, columns=["image_id", "label", "split", "weight"])
    parts = {split: table.filter(pc.equal(table.column("split"), split)) for split in ("train", "val")}
    if not parts["train"].num_rows:
        raise SourceError(f"{training_set}: no row of split 'train'; lower split.val_share and split.test_share")
    return parts


def images(part: pa.Table, labels: Mapping[str, int]) -> Images:
    """The stored images of some rows; `labels` says which number a class name has."""
    ids = part.column("image_id").to_pylist()
    return Images(
        keys=[blob_key(image_id) for image_id in ids],
        ids=ids,
        labels=[labels[name] for name in part.column("label").to_pylist()],
        weights=part.column("weight").to_pylist(),
    )
