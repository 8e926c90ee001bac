"""`prepare`: the pixels that training sees are those that serving would make."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from striped_images import CLASS_NAMES, SIDE, write_training_set

from pipelines.core import pixelset
from pipelines.core.datasets import blob_key
from pipelines.core.errors import DarkroomError, SourceError
from pipelines.core.model_package import pixels_sha256
from pipelines.core.preprocessing import preprocess, spec_of
from pipelines.core.recipe import Preprocessing
from pipelines.steps import prepare as step
from pipelines.steps.prepare import prepare

SPEC = spec_of(Preprocessing(height=SIDE, width=SIDE))


def test_pixels_are_the_serving_path_s_by_hash(tmp_path: Path) -> None:
    storage, training_set = write_training_set(tmp_path, {"train": 30, "val": 9, "test": 6})
    prepared = prepare(training_set, CLASS_NAMES, storage, SPEC, tmp_path)
    assert (prepared.num_train, prepared.num_val) == (30, 9)
    data = pixelset.load(tmp_path)
    assert set(data.splits) == {"train", "val"}
    for split in data.splits.values():
        for pixels, image_id in zip(split.pixels, split.ids, strict=True):
            served = preprocess(storage.read(blob_key(image_id)), SPEC)
            assert pixels_sha256(pixels) == pixels_sha256(served)
    labels = {row["image_id"]: row["label"] for row in pq.read_table(training_set).to_pylist()}
    val = data.splits["val"]
    assert [CLASS_NAMES[label] for label in val.labels] == [labels[image_id] for image_id in val.ids]


def test_workers_write_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage, training_set = write_training_set(tmp_path, {"train": 150, "val": 9})
    for name, few in (("alone", 1000), ("together", 0)):
        (tmp_path / name).mkdir()
        monkeypatch.setattr(step, "_FEW", few)
        prepare(training_set, CLASS_NAMES, storage, SPEC, tmp_path / name)
    alone, together = (sorted((tmp_path / name).iterdir()) for name in ("alone", "together"))
    assert [path.read_bytes() for path in alone] == [path.read_bytes() for path in together]


def test_a_stored_image_that_does_not_decode_is_named(tmp_path: Path) -> None:
    storage, training_set = write_training_set(tmp_path, {"train": 6, "val": 3})
    victim = blob_key(pq.read_table(training_set).column("image_id")[0].as_py())
    storage.write(victim, b"rot")
    with pytest.raises(DarkroomError, match=victim):
        prepare(training_set, CLASS_NAMES, storage, SPEC, tmp_path)
    storage.delete(victim)
    with pytest.raises(DarkroomError, match=victim):
        prepare(training_set, CLASS_NAMES, storage, SPEC, tmp_path)


def test_no_validation_images_is_fine_and_no_training_images_is_not(tmp_path: Path) -> None:
    storage, training_set = write_training_set(tmp_path, {"train": 6})
    assert prepare(training_set, CLASS_NAMES, storage, SPEC, tmp_path).num_val == 0
    assert pixelset.load(tmp_path).splits["val"].pixels.shape == (0, SIDE, SIDE, 3)
    storage, training_set = write_training_set(tmp_path, {"val": 6})
    with pytest.raises(SourceError, match="val_share"):
        prepare(training_set, CLASS_NAMES, storage, SPEC, tmp_path)


def test_a_pixel_set_whose_arrays_do_not_fit_is_refused(tmp_path: Path) -> None:
    storage, training_set = write_training_set(tmp_path, {"train": 6})
    prepare(training_set, CLASS_NAMES, storage, SPEC, tmp_path)
    np.save(tmp_path / "train-labels.npy", np.zeros(5, np.int64))
    with pytest.raises(DarkroomError, match="train-pixels"):
        pixelset.load(tmp_path)
    with pytest.raises(SourceError, match=r"pixelset\.json"):
        pixelset.load(tmp_path / "nowhere")
