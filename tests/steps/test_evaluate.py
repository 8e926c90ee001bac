"""The final package and its figures, from images in a store through the serving path."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from example_packages import COLOURS, coloured, write_package
from PIL import Image

from pipelines.adapters.pictures import MatplotlibPictures
from pipelines.core import manifest, model_package
from pipelines.core.errors import ImageError, UserError
from pipelines.core.values import Evaluated
from pipelines.steps.evaluate import evaluate, worst_mistakes


class Store(dict[str, bytes]):
    """Images by id that counts how often each is read."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: list[str] = []

    def read(self, image_id: str) -> bytes:
        self.reads.append(image_id)
        return self[image_id]


def snapshot(folder: Path, store: Store, per_class: int = 30, split: str = "test") -> Path:
    """`per_class` test images of each colour, and as many training images that cannot be read."""
    rows = []
    for name in COLOURS:
        for seed in range(per_class):
            data = coloured(name, seed)
            image_id = hashlib.sha256(data).hexdigest()
            store[image_id] = data
            rows.append({"image_id": image_id, "label": name, "split": split})
            rows.append({"image_id": f"absent-{name}-{seed}", "label": name, "split": "train"})
    known = {"event_timestamp": datetime(2024, 1, 1, tzinfo=UTC), "source_uri": "", "group_id": "", "interval": ""}
    path = folder / "manifest.parquet"
    manifest.write(path, pa.Table.from_pylist([{**known, **row} for row in rows], schema=manifest.SNAPSHOT))
    return path


def run(folder: Path, store: Store, weights: np.ndarray, temperature: float = 1.0) -> Evaluated:
    out = folder / "out"
    out.mkdir()
    exported = write_package(folder / "exported", weights=weights, temperature=temperature)
    return evaluate(
        exported.folder,
        snapshot(folder, store),
        store.read,
        MatplotlibPictures(),
        out,
        confidence=0.95,
        threads=2,
    )


BLIND_TO_BLUE = 10 * np.diag(np.array([1, 1, 0], np.float32))


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Evaluated, Path, Store]:
    """What a model that knows two of three colours leaves: the value, the folder, the store it read from."""
    folder, store = tmp_path_factory.mktemp("evaluated"), Store()
    return run(folder, store, BLIND_TO_BLUE), folder / "out", store


def test_the_final_package_says_how_good_it_is(evaluated: tuple[Evaluated, Path, Store]) -> None:
    found, out, _ = evaluated
    assert found.num_images == 90
    assert found.accuracy.value == pytest.approx(2 / 3)
    package = model_package.load(out / "package")
    assert package.digest == found.package_digest
    assert package.metrics["accuracy"] == found.accuracy
    assert package.description.num_test_images == 90
    assert {"top_2_accuracy", "nll", "calibration_error", "calibration_error_uncalibrated"} <= set(package.metrics)
    metrics = json.loads((out / "metrics.json").read_text())
    assert np.array(metrics["confusion"]).sum(axis=1).tolist() == [30, 30, 30]
    assert [one["class_name"] for one in metrics["classes"]] == list(COLOURS)


def test_equal_work_gives_equal_files(evaluated: tuple[Evaluated, Path, Store], tmp_path: Path) -> None:
    run(tmp_path, Store(), BLIND_TO_BLUE)
    files = [
        {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}
        for out in (evaluated[1], tmp_path / "out")
    ]
    assert files[0] == files[1]


def test_only_test_images_are_read_and_the_worst_mistakes_once_more(evaluated: tuple[Evaluated, Path, Store]) -> None:
    reads = evaluated[2].reads
    assert len(reads) == 90 + 24
    assert len(set(reads[90:])) == 24


def test_pictures_show_something(evaluated: tuple[Evaluated, Path, Store]) -> None:
    for name in ("confusion.png", "mistakes.png"):
        picture = np.asarray(Image.open(evaluated[1] / name).convert("RGB"))
        assert min(picture.shape[:2]) > 200
        assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 50


def test_a_model_without_mistakes(tmp_path: Path) -> None:
    found = run(tmp_path, Store(), 10 * np.eye(3, dtype=np.float32))
    assert found.accuracy.value == 1
    assert found.accuracy.low < 0.97
    assert (tmp_path / "out" / "mistakes.png").stat().st_size > 0


def test_a_snapshot_without_test_images(tmp_path: Path) -> None:
    store = Store()
    exported = write_package(tmp_path / "exported")
    manifest_path = snapshot(tmp_path, store, split="val")
    with pytest.raises(UserError, match=r"split\.test_share"):
        evaluate(exported.folder, manifest_path, store.read, MatplotlibPictures(), tmp_path, confidence=0.95, threads=1)


def test_images_of_classes_that_the_model_does_not_know_are_left_out(tmp_path: Path) -> None:
    """As in an import: the data has classes that the model was not made for."""
    store = Store()
    exported = write_package(tmp_path / "exported", class_names=("red", "green", "turquoise"))
    path, out = snapshot(tmp_path, store, per_class=10), tmp_path / "out"
    out.mkdir()
    found = evaluate(exported.folder, path, store.read, MatplotlibPictures(), out, confidence=0.95, threads=1)
    assert (found.num_images, found.accuracy.value) == (20, 1.0)
    assert len(set(store.reads)) == 20


def test_a_stored_image_that_is_broken_is_named(tmp_path: Path) -> None:
    store = Store()
    exported = write_package(tmp_path / "exported")
    manifest_path = snapshot(tmp_path, store)
    broken = sorted(store)[7]
    store[broken] = b"nothing"
    with pytest.raises(ImageError, match=broken):
        evaluate(exported.folder, manifest_path, store.read, MatplotlibPictures(), tmp_path, confidence=0.95, threads=2)


def test_worst_mistakes_are_the_surest() -> None:
    logits = np.array([[3, 0, 0], [0, 1, 0], [0, 9, 0], [5, 0, 0]], np.float32)
    found = worst_mistakes(logits, np.array([1, 0, 0, 0]), COLOURS, temperature=2.0)
    assert [position for position, _ in found] == [2, 0, 1]
    assert (found[0][1].true_class, found[0][1].predicted_class) == ("red", "green")
    assert found[0][1].probability == pytest.approx(np.exp(4.5) / (np.exp(4.5) + 2), rel=1e-5)
