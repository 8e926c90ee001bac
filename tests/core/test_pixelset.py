"""Pixel sets: what is written in shards is found again, and what does not fit together is refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from pipelines.core import pixelset, stored_texts
from pipelines.core.errors import IntegrityError, SourceError
from pipelines.core.pixelset import DecodedImages, EncodedWriter, PixelFiles, Pixels, Split

SHAPE = (4, 6)
NUM_IMAGES = 10


def _pixels() -> Pixels:
    return np.random.default_rng(0).integers(0, 256, (NUM_IMAGES, *SHAPE, 3)).astype(np.uint8)


def _finish(folder: Path, keys: Sequence[str] = ()) -> Split:
    ids = [f"image-{row}" for row in range(NUM_IMAGES)]
    pixelset.write_split(folder, "train", labels=range(NUM_IMAGES), weights=[1.0] * NUM_IMAGES, ids=ids, keys=keys)
    pixelset.write_index(folder, class_names=["a", "b"], preprocessing={}, splits={"train": NUM_IMAGES})
    return pixelset.load(folder).splits["train"]


def _write_decoded(folder: Path, *, whole: bool = False) -> Split:
    pixelset.create_pixels(folder, "train", NUM_IMAGES, *SHAPE, whole=whole)
    files = PixelFiles(folder, "train")
    for row, image in enumerate(_pixels()):
        files.write(row, image, 100 + row, 200 + row)
    return _finish(folder)


def _write_encoded(folder: Path) -> Split:
    writer = EncodedWriter(folder, "train", NUM_IMAGES)
    for row in range(NUM_IMAGES):
        writer.append(bytes([row]) * (row + 1), 100 + row, 200 + row)
    writer.close()
    return _finish(folder, [f"folder/{'ä' * row}.png" for row in range(NUM_IMAGES)])


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixelset, "SHARD_BYTES", 4 * SHAPE[0] * SHAPE[1] * 3)


@pytest.mark.usefixtures("small_shards")
def test_rows_are_gathered_across_shards_in_the_order_asked_for(tmp_path: Path) -> None:
    images = _write_decoded(tmp_path).pixels
    assert len(list(tmp_path.glob("train-pixels-*.npy"))) == 3
    rows = np.array([9, 0, 4, 3, 4, 8])
    assert (images.rows(rows) == _pixels()[rows]).all()
    out = np.zeros((len(rows), *SHAPE, 3), np.uint8)
    assert images.rows(rows, out) is out
    assert (out == _pixels()[rows]).all()
    assert (images.image(7) == _pixels()[7]).all()
    assert [len(batch) for batch in images.batches(4)] == [4, 4, 2]
    assert (np.concatenate(list(images.batches(4))) == _pixels()).all()


@pytest.mark.usefixtures("small_shards")
@pytest.mark.parametrize("num_images", [0, 3, 4, 5, 10, 20])
def test_the_first_images_are_a_view(tmp_path: Path, num_images: int) -> None:
    images = _write_decoded(tmp_path, whole=True).pixels.first(num_images)
    expected = _pixels()[:num_images]
    assert len(images) == len(expected)
    assert images.sizes is not None
    assert len(images.sizes) == len(expected)
    assert (images.rows(np.arange(len(expected))) == expected).all()


def test_whole_images_keep_the_size_they_had(tmp_path: Path) -> None:
    sizes = _write_decoded(tmp_path, whole=True).pixels.sizes
    assert sizes is not None
    assert sizes.tolist() == [[100 + row, 200 + row] for row in range(NUM_IMAGES)]


def test_evaluation_pixels_have_no_sizes(tmp_path: Path) -> None:
    assert _write_decoded(tmp_path).pixels.sizes is None


def test_encoded_files_are_found_in_their_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixelset, "SHARD_BYTES", 8)
    split = _write_encoded(tmp_path)
    assert len(list(tmp_path.glob("train-images-*.bin"))) > 3
    assert isinstance(split.images, pixelset.EncodedImages)
    assert [split.images.data(row) for row in range(NUM_IMAGES)] == [
        bytes([row]) * (row + 1) for row in range(NUM_IMAGES)
    ]
    assert split.images.sizes[3].tolist() == [103, 203]
    assert split.ids[2:4] == ["image-2", "image-3"]
    assert split.keys[2] == "folder/ää.png"
    (tmp_path / "train-keys.npy").unlink()  # as in older ones
    assert not pixelset.load(tmp_path).splits["train"].keys
    with pytest.raises(TypeError, match="encoded"):
        _ = split.pixels


def test_a_split_without_images_is_one(tmp_path: Path) -> None:
    pixelset.create_pixels(tmp_path, "val", 0, *SHAPE, whole=False)
    pixelset.write_split(tmp_path, "val", labels=[], weights=[], ids=[])
    pixelset.write_index(tmp_path, class_names=["a", "b"], preprocessing={}, splits={"val": 0})
    images = pixelset.load(tmp_path).splits["val"].pixels
    assert isinstance(images, DecodedImages)
    assert (len(images), images.height, images.width) == (0, *SHAPE)


def test_files_that_do_not_fit_together_are_refused(tmp_path: Path) -> None:
    _write_decoded(tmp_path)
    np.save(tmp_path / "train-labels.npy", np.zeros(5, np.int64))
    with pytest.raises(IntegrityError, match=r"train has \[5, 10\] rows"):
        pixelset.load(tmp_path)
    for file in tmp_path.glob("train-pixels-*"):
        file.unlink()
    with pytest.raises(IntegrityError, match="images of split train"):
        pixelset.load(tmp_path)
    with pytest.raises(SourceError, match=r"pixelset\.json"):
        pixelset.load(tmp_path / "nowhere")


def test_keys_of_other_images_are_refused(tmp_path: Path) -> None:
    _write_encoded(tmp_path)
    stored_texts.write(tmp_path / "train-keys.npy", ["one.png"])
    with pytest.raises(IntegrityError, match=r"train has \[1, 10\] rows"):
        pixelset.load(tmp_path)


def test_cut_off_encoded_files_are_refused(tmp_path: Path) -> None:
    _write_encoded(tmp_path)
    shard = tmp_path / "train-images-00000.bin"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(IntegrityError, match="not all there"):
        pixelset.load(tmp_path)
    (tmp_path / "train-sizes.npy").unlink()
    with pytest.raises(IntegrityError, match=r"train-sizes\.npy"):
        pixelset.load(tmp_path)
