"""`prepare`: the training and validation images, decoded once, as a pixel set."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.core import decoding, pixelset
from pipelines.core.datasets import blob_key
from pipelines.core.decoding import Row
from pipelines.core.errors import DarkroomError, SourceError
from pipelines.core.preprocessing import PreprocessingSpec
from pipelines.core.storage import Storage
from pipelines.core.values import Prepared
from pipelines.core.workers import Workers, num_cores

SPLITS = ("train", "val")
_CHUNK = 64
_FEW = 2000
"""Images that are decoded sooner than worker processes would start."""


def prepare(
    training_set: Path, class_names: Sequence[str], storage: Storage, spec: PreprocessingSpec, out: Path
) -> Prepared:
    """Write the pixel set of training_set.parquet's train and val rows, on all cores of this process.

    Test images are not decoded here: evaluation sends their bytes through the serving path. Memory does not grow with
    the number of images. Raises SourceError for no training images, DarkroomError naming a stored image that does not
    decode.
    """
    table = pq.read_table(training_set, columns=["image_id", "label", "split", "weight"])
    labels = {name: label for label, name in enumerate(class_names)}
    parts = {split: table.filter(pc.equal(table.column("split"), split)) for split in SPLITS}
    if not parts["train"].num_rows:
        raise SourceError(f"{training_set}: no row of split 'train'; lower split.val_share and split.test_share")
    for split, part in parts.items():
        pixelset.create_pixels(out, split, part.num_rows, spec.height, spec.width)
        pixelset.write_split(
            out,
            split,
            labels=[labels[name] for name in part.column("label").to_pylist()],
            weights=part.column("weight").to_pylist(),
            ids=part.column("image_id").to_pylist(),
        )
    _decode_all(parts, storage, spec, out)
    counts = {split: part.num_rows for split, part in parts.items()}
    pixelset.write_index(out, class_names=class_names, preprocessing=spec.to_json(), splits=counts)
    return Prepared(num_train=counts["train"], num_val=counts["val"], class_names=tuple(class_names))


def _decode_all(parts: dict[str, pa.Table], storage: Storage, spec: PreprocessingSpec, out: Path) -> None:
    chunks = [
        [Row(split=split, position=start + offset, image_id=image_id) for offset, image_id in enumerate(ids)]
        for split, part in parts.items()
        for start, ids in _slices(part)
    ]
    arguments = (storage.uri, storage.endpoint_url, spec, out)
    if sum(map(len, chunks)) <= _FEW:
        answers: Iterator[list[str]] = map(decoding.start(*arguments), chunks)
    else:
        answers = Workers(decoding.start, arguments, _crashed, num_cores()).map(chunks)
    for complaints in answers:
        for complaint in filter(None, complaints):
            raise DarkroomError(complaint)


def _slices(part: pa.Table) -> Iterator[tuple[int, list[str]]]:
    for start in range(0, part.num_rows, _CHUNK):
        yield start, part.column("image_id").slice(start, _CHUNK).to_pylist()


def _crashed(row: Row) -> str:
    return f"{blob_key(row.image_id)}: decoding it ended the process that tried; withdraw the image"
