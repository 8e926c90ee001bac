"""A foreign ONNX file becomes a package, on as many or as few images as there are."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
from example_packages import coloured
from foreign_models import MeanColour, export

from pipelines.adapters.foreign_onnx import OnnxNetwork
from pipelines.adapters.quantization import OnnxQuantizer
from pipelines.core import manifest, model_package
from pipelines.core.foreign import ForeignModel
from pipelines.core.inference import Classifier, prove
from pipelines.core.model_package import Lineage, ModelPackage
from pipelines.core.recipe import Export, Recipe
from pipelines.steps.adopt import adopt

COLOURS = ("red", "green", "blue")
LINEAGE = Lineage(snapshot_id="s", recipe_digest="r", code_digest="c", run_id="import_model__x1/1")


def adopted(folder: Path, images: Mapping[str, tuple[str | None, str]], *, int8: bool = False) -> ModelPackage:
    """Of images, each with its label and split, by name of the colour and a seed."""
    blobs = {hashlib.sha256(data).hexdigest(): (data, *images[key]) for key in images for data in [_image(key)]}
    known = {"event_timestamp": datetime(2024, 1, 1, tzinfo=UTC), "source_uri": "", "group_id": "", "interval": ""}
    rows = [{**known, "image_id": one, "label": blobs[one][1], "split": blobs[one][2]} for one in sorted(blobs)]
    manifest.write(folder / "manifest.parquet", pa.Table.from_pylist(rows, schema=manifest.SNAPSHOT))
    path = export(MeanColour(), folder / "model.onnx")
    model = ForeignModel(form="onnx", file=str(path), classes=COLOURS, input_range="0..1")
    (folder / "out").mkdir()
    exported, _ = adopt(
        lambda pixels_of: OnnxNetwork(model, pixels_of),
        folder / "manifest.parquet",
        lambda image_id: blobs[image_id][0],
        Recipe(name="x1", export=Export(int8=int8)),
        LINEAGE,
        OnnxQuantizer(),
        folder / "out",
    )
    package = model_package.load(folder / "out" / "package")
    assert exported.temperature == package.temperature
    assert prove(Classifier(package)).num_images == len(package.golden)
    return package


def _image(key: str) -> bytes:
    name, seed = key.split("-")
    return coloured(name, int(seed))


def test_validation_images_of_known_classes_fit_the_temperature(tmp_path: Path) -> None:
    images = {f"{name}-{seed}": (name, "val") for name in COLOURS for seed in range(10)}
    strange = {f"red-{seed}": ("purple", "val") for seed in range(50, 55)}
    package = adopted(tmp_path, {**images, **strange, "red-99": ("red", "test")})
    assert package.temperature != 1.0
    assert package.description.parity.num_images == 35, "images of other classes prove as well"
    notes = json.loads((tmp_path / "out" / "notes.json").read_text())
    assert notes[-1].endswith("fitted on 30 validation images")


def test_one_image_that_is_to_judge_proves_and_does_not_calibrate(tmp_path: Path) -> None:
    package = adopted(tmp_path, {"green-1": ("green", "test")})
    assert (package.temperature, package.description.parity.num_images) == (1.0, 1)
    assert len(package.golden) == 6, "one image, and five forms of it"
    notes = json.loads((tmp_path / "out" / "notes.json").read_text())
    assert notes[-1] == "temperature: 1, no labelled validation image to fit it on"


def test_int8_is_not_judged_on_images_without_labels(tmp_path: Path) -> None:
    package = adopted(tmp_path, {f"blue-{seed}": (None, "val") for seed in range(4)}, int8=True)
    assert package.description.decisions["int8"] == "not made: 0 validation images, 1000 are needed to judge it"
    found = Classifier(package).predict_bytes([_image("blue-7")])
    assert np.argmax(found.probabilities) == 2
