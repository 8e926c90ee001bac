"""`prepare`: evaluation pixels are those that serving makes, and training images are stored as the recipe asks."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import photographs
import pyarrow.parquet as pq
import pytest
from striped_images import CLASS_NAMES, SIDE, write_training_set

from pipelines.core import pixelset, preparation
from pipelines.core.datasets import blob_key
from pipelines.core.errors import DarkroomError, SourceError
from pipelines.core.layout import choice
from pipelines.core.model_package import pixels_sha256
from pipelines.core.pixelset import EncodedImages, Split
from pipelines.core.preprocessing import decode, preprocess, resize, spec_of
from pipelines.core.recipe import Preprocessing, from_dict, override
from pipelines.core.storage import Storage
from pipelines.steps.prepare import prepare

RECIPE = from_dict({"name": "stripes", "preprocessing": {"height": SIDE, "width": SIDE}})
SPEC = spec_of(RECIPE.preprocessing)
PHOTOGRAPHS = override(RECIPE, {"preprocessing.height": 16, "preprocessing.width": 24, "augmentation.crop": "resized"})
NAMES = ("class-0", "class-1", "class-2")


def _hashes(split: Split) -> list[str]:
    return [pixels_sha256(split.pixels.image(row)) for row in range(len(split))]


def _served(split: Split, storage: Storage, spec: Any) -> list[str]:
    return [pixels_sha256(preprocess(storage.read(blob_key(image_id)), spec)) for image_id in split.ids]


def test_pixels_are_the_serving_path_s_by_hash(tmp_path: Path) -> None:
    storage, training_set = write_training_set(tmp_path, {"train": 30, "val": 9, "test": 6})
    prepared = prepare(training_set, CLASS_NAMES, storage, RECIPE, tmp_path)
    assert (prepared.num_train, prepared.num_val) == (30, 9)
    data = pixelset.load(tmp_path)
    assert set(data.splits) == {"train", "val"}
    for split in data.splits.values():
        assert split.pixels.sizes is None
        assert _hashes(split) == _served(split, storage, SPEC)
    labels = {row["image_id"]: row["label"] for row in pq.read_table(training_set).to_pylist()}
    val = data.splits["val"]
    assert [CLASS_NAMES[label] for label in val.labels] == [labels[image_id] for image_id in val.ids]


@pytest.mark.parametrize(
    "loading",
    [
        {"loading.strategy": "resident"},
        {"loading.strategy": "mapped", "loading.margin": 2.0},
        {"loading.strategy": "stream"},
        {"loading.max_decoded_gb": 0.0},
        {"loading.strategy": "stream", "augmentation.crop": "shift"},
    ],
)
def test_every_strategy_has_the_same_evaluation_pixels(tmp_path: Path, loading: Mapping[str, Any]) -> None:
    storage, training_set = photographs.write_training_set(tmp_path, {"train": 6, "val": 6})
    prepare(training_set, NAMES, storage, override(PHOTOGRAPHS, loading), tmp_path)
    val = pixelset.load(tmp_path).splits["val"]
    assert _hashes(val) == _served(val, storage, spec_of(PHOTOGRAPHS.preprocessing))


def test_photographs_to_cut_from_are_stored_whole_with_a_margin_and_the_sizes_they_had(tmp_path: Path) -> None:
    storage, training_set = photographs.write_training_set(tmp_path, {"train": 6, "val": 3})
    prepare(training_set, NAMES, storage, override(PHOTOGRAPHS, {"loading.margin": 1.25}), tmp_path)
    train = pixelset.load(tmp_path).splits["train"]
    assert (train.pixels.height, train.pixels.width) == (20, 30)
    squashed = dataclasses.replace(spec_of(Preprocessing(height=20, width=30, fit="squash")), filter="lanczos")
    for row, image_id in enumerate(train.ids):
        decoded = decode(storage.read(blob_key(image_id)))
        assert train.pixels.sizes is not None
        assert train.pixels.sizes[row].tolist() == [decoded.height, decoded.width]
        assert np.abs(train.pixels.image(row).astype(int) - resize(decoded.image, squashed)).max() <= 2


def test_images_to_stream_are_stored_as_they_came(tmp_path: Path) -> None:
    storage, training_set = photographs.write_training_set(tmp_path, {"train": 6, "val": 3})
    for name, changes in (("asked", {"loading.strategy": "stream"}), ("large", {"loading.max_decoded_gb": 1e-6})):
        (tmp_path / name).mkdir()
        prepare(training_set, NAMES, storage, override(PHOTOGRAPHS, changes), tmp_path / name)
        train = pixelset.load(tmp_path / name).splits["train"]
        assert isinstance(train.images, EncodedImages)
        for row, image_id in enumerate(train.ids):
            data = storage.read(blob_key(image_id))
            assert train.images.data(row) == data
            assert tuple(train.images.sizes[row]) == (decode(data).height, decode(data).width)


def test_only_what_changes_the_stored_pixels_is_part_of_the_key() -> None:
    unchanged = {"augmentation.mixup": 0.2, "loading.workers": 3, "loading.margin": 2.0}
    assert choice(override(RECIPE, unchanged)) == choice(RECIPE)
    same = [choice(override(PHOTOGRAPHS, {"loading.strategy": one})) for one in ("resident", "mapped")]
    assert same[0] == same[1]
    changed = [{"augmentation.crop": "resized"}, {"loading.strategy": "stream"}, {"loading.max_decoded_gb": 1.0}]
    keys = {choice(override(RECIPE, one)) for one in changed} | {choice(RECIPE)}
    assert len(keys) == 4
    assert choice(override(PHOTOGRAPHS, {"loading.margin": 2.0})) != choice(PHOTOGRAPHS)


@pytest.mark.parametrize("recipe", [RECIPE, override(RECIPE, {"augmentation.crop": "resized"})])
def test_workers_write_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: Any) -> None:
    storage, training_set = write_training_set(tmp_path, {"train": 150, "val": 9})
    for name, few in (("alone", 1000), ("together", 0)):
        (tmp_path / name).mkdir()
        monkeypatch.setattr(preparation, "_FEW", few)
        prepare(training_set, CLASS_NAMES, storage, recipe, tmp_path / name)
    alone, together = (sorted((tmp_path / name).iterdir()) for name in ("alone", "together"))
    assert [path.name for path in alone] == [path.name for path in together]
    assert [path.read_bytes() for path in alone] == [path.read_bytes() for path in together]


@pytest.mark.parametrize("strategy", ["auto", "stream"])
def test_a_stored_image_that_does_not_decode_is_named(tmp_path: Path, strategy: str) -> None:
    recipe = override(RECIPE, {"loading.strategy": strategy})
    storage, training_set = write_training_set(tmp_path, {"train": 6, "val": 3})
    rows = pq.read_table(training_set).to_pylist()
    victim = blob_key(next(row["image_id"] for row in rows if row["split"] == "train"))
    storage.write(victim, b"rot")
    with pytest.raises(DarkroomError, match=f"{victim}: does not decode .*; ingest its interval again"):
        prepare(training_set, CLASS_NAMES, storage, recipe, tmp_path)
    storage.delete(victim)
    with pytest.raises(DarkroomError, match=f"{victim}: no such object; ingest its interval again"):
        prepare(training_set, CLASS_NAMES, storage, recipe, tmp_path)


def test_no_validation_images_is_fine_and_no_training_images_is_not(tmp_path: Path) -> None:
    storage, training_set = write_training_set(tmp_path, {"train": 6})
    assert prepare(training_set, CLASS_NAMES, storage, RECIPE, tmp_path).num_val == 0
    assert len(pixelset.load(tmp_path).splits["val"].pixels) == 0
    storage, training_set = write_training_set(tmp_path, {"val": 6})
    with pytest.raises(SourceError, match="val_share"):
        prepare(training_set, CLASS_NAMES, storage, RECIPE, tmp_path)
