"""Training by hand on a folder of class folders: the command where there is torch and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from striped_images import CLASS_NAMES, SIDE, striped

from pipelines.core import pixelset, preprocessing
from pipelines.core.errors import SourceError
from pipelines.core.pixelset import EncodedImages
from pipelines.core.preprocessing import preprocess, spec_of
from pipelines.core.recipe import Recipe, from_dict, override
from pipelines.training import image_folder
from pipelines.training.__main__ import main

RECIPE = from_dict({"name": "stripes", "preprocessing": {"height": SIDE, "width": SIDE}})


def _fill(folder: Path, num_images: int, first_seed: int = 0) -> Path:
    for number in range(num_images):
        path = folder / CLASS_NAMES[number % 3] / f"{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(striped(number % 3, first_seed + number))
    return folder


def test_hashes_split_a_plain_folder_the_same_way_every_time(tmp_path: Path) -> None:
    _fill(tmp_path / "data", 90)
    first, second = (image_folder.read(tmp_path / "data", RECIPE, tmp_path / out) for out in ("first", "second"))
    assert first.class_names == CLASS_NAMES
    assert {name: list(split.ids) for name, split in first.splits.items()} == {
        name: list(split.ids) for name, split in second.splits.items()
    }
    assert 3 <= len(first.splits["val"]) <= 30
    assert len(first.splits["train"]) + len(first.splits["val"]) == 90


def test_pixels_are_those_of_serving(tmp_path: Path) -> None:
    _fill(tmp_path / "data" / "train", 6)
    _fill(tmp_path / "data" / "val", 3, first_seed=100)
    _fill(tmp_path / "data" / "test", 3, first_seed=200)
    data = image_folder.read(tmp_path / "data", RECIPE, tmp_path / "pixels")
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 6, "val": 3}
    val = data.splits["val"]
    for row, label in enumerate(val.labels):
        (path,) = (tmp_path / "data" / "val" / CLASS_NAMES[label]).iterdir()
        assert (val.pixels.image(row) == preprocess(path.read_bytes(), spec_of(RECIPE.preprocessing))).all()


def test_without_validation_images_the_hash_deals_them_out_of_train(tmp_path: Path) -> None:
    _fill(tmp_path / "data" / "train", 90)
    _fill(tmp_path / "data" / "test", 3, first_seed=200)
    data = image_folder.read(tmp_path / "data", RECIPE, tmp_path / "pixels")
    assert 3 <= len(data.splits["val"]) <= 30
    assert len(data.splits["train"]) + len(data.splits["val"]) == 90


@pytest.mark.parametrize("root", ["data", "data/train"])
def test_what_begins_with_a_dot_is_passed_over(root: str, tmp_path: Path) -> None:
    folder = _fill(tmp_path / root, 30)
    for place in (tmp_path / "data", folder, folder / "along"):
        (place / ".cache").mkdir(exist_ok=True)
        (place / ".cache" / "index").write_text("no image")
        (place / ".DS_Store").write_text("no image")
    data = image_folder.read(tmp_path / "data", RECIPE, tmp_path / "pixels")
    assert data.class_names == CLASS_NAMES
    assert sum(len(split) for split in data.splits.values()) == 30


def test_pixels_are_written_again_by_another_decoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, index = _fill(tmp_path / "data", 30), tmp_path / "pixels" / pixelset.INDEX
    image_folder.read(folder, RECIPE, tmp_path / "pixels")
    monkeypatch.setattr(preprocessing, "library_versions", lambda: {"pillow": "0.1", "libjpeg": "0.2"})
    image_folder.read(folder, RECIPE, tmp_path / "pixels")
    assert '"0.1"' in index.read_text()


def test_pixels_are_written_once_for_the_same_files_and_recipe(tmp_path: Path) -> None:
    folder, out = _fill(tmp_path / "data", 30), tmp_path / "pixels"

    def written(recipe: Recipe) -> bool:
        index = out / pixelset.INDEX
        before = index.stat().st_mtime_ns if index.exists() else None
        image_folder.read(folder, recipe, out)
        return index.stat().st_mtime_ns != before

    assert written(RECIPE)
    assert not written(RECIPE)
    assert not written(override(RECIPE, {"training.epochs": 3, "augmentation.mixup": 0.2}))
    streamed = override(RECIPE, {"loading.strategy": "stream"})
    assert written(streamed)
    assert isinstance(image_folder.read(folder, streamed, out).splits["train"].images, EncodedImages)
    _fill(folder, 33)
    (folder / "across" / "000.png").write_bytes(striped(0, 500))
    assert written(streamed)
    (out / "made-of").unlink()  # as a killed process leaves it
    assert written(streamed)


def test_a_file_that_is_no_image_and_a_folder_without_classes_are_named(tmp_path: Path) -> None:
    _fill(tmp_path / "data", 6)
    (tmp_path / "data" / "along" / "notes.txt").write_text("hello")
    with pytest.raises(SourceError, match=r"notes\.txt: does not decode .*; take it out of the folder"):
        image_folder.read(tmp_path / "data", RECIPE, tmp_path / "pixels")
    with pytest.raises(SourceError, match="named by their class"):
        image_folder.read(tmp_path / "nothing", RECIPE, tmp_path / "pixels")


def test_the_command_writes_weights_and_says_how_good_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _fill(tmp_path / "data", 60)
    (tmp_path / "stripes.toml").write_text(
        f"[preprocessing]\nheight = {SIDE}\nwidth = {SIDE}\n[training]\nepochs = 1\nthreads = 1\ndevice = 'cpu'\n"
    )
    arguments = ["--recipe", str(tmp_path / "stripes.toml"), "--out", str(tmp_path / "out"), "--data"]
    assert main([*arguments, str(tmp_path / "data")]) == 0
    assert json.loads(capsys.readouterr().out)["epochs_run"] == 1
    assert (tmp_path / "out" / "weights.pt").is_file()
    assert main([*arguments, str(tmp_path / "nothing")]) == 2
    assert "nothing" in capsys.readouterr().err
