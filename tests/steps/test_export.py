"""`train` and `export`: from pixels to a package that answers like the network it came from."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import pytest
from striped_images import CLASS_NAMES, SIDE, striped, write_training_set

from pipelines.adapters.quantization import OnnxQuantizer
from pipelines.core import model_package, pixelset
from pipelines.core.datasets import blob_key
from pipelines.core.errors import GateRejected
from pipelines.core.inference import Classifier, prove
from pipelines.core.model_package import Lineage
from pipelines.core.packing import check_parity
from pipelines.core.recipe import Recipe, from_dict, override
from pipelines.core.storage import Storage
from pipelines.core.values import Exported, Trained
from pipelines.steps.export import export
from pipelines.steps.prepare import prepare
from pipelines.steps.train import train
from pipelines.training.export import load_network, reference_logits

RECIPE = from_dict(
    {
        "name": "stripes",
        "preprocessing": {"height": SIDE, "width": SIDE},
        "model": {"embedding_dim": 16},
        "training": {"epochs": 4, "batch_size": 32, "threads": 1, "device": "cpu"},
        "augmentation": {"flip": "none", "shift_share": 0.0},
        "export": {"min_int8_images": 50, "max_int8_accuracy_loss": 0.1, "num_calibration_images": 32},
    }
)
LINEAGE = Lineage(snapshot_id="s", recipe_digest="r", code_digest="c", run_id="train_classifier/test")


@dataclass
class _Tracker:
    """Keeps what it is told, as a tracking server would."""

    metrics: list[tuple[str, float, int]] = field(default_factory=list)
    status: str = ""

    def start(self, name: str, params: Mapping[str, str], tags: Mapping[str, str]) -> str:
        return f"tracked-{name}"

    def log(self, metrics: Sequence[tuple[str, float, int]]) -> None:
        self.metrics += metrics

    def finish(self, status: str) -> None:
        self.status = status


@dataclass
class _Trained:
    folder: Path
    storage: Storage
    value: Trained
    tracker: _Tracker

    def export(self, recipe: Recipe, out: Path) -> tuple[Exported, dict[str, float]]:
        out.mkdir()
        read = self.storage.read
        parts = (self.folder / "trained", self.folder / "prepared")
        return export(*parts, recipe, LINEAGE, OnnxQuantizer(), lambda image_id: read(blob_key(image_id)), out)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> _Trained:
    folder = tmp_path_factory.mktemp("chain")
    (folder / "prepared").mkdir()
    storage, training_set = write_training_set(folder, {"train": 150, "val": 90})
    prepare(training_set, CLASS_NAMES, storage, RECIPE, folder / "prepared")
    tracker = _Tracker()
    value = train(
        folder / "prepared",
        RECIPE,
        tracker,
        folder / "trained",
        checkpoints=folder / "checkpoints",
        run_name="test",
        parameters={},
        tags={},
    )
    return _Trained(folder=folder, storage=storage, value=value, tracker=tracker)


@pytest.fixture(scope="module")
def exported(trained: _Trained) -> tuple[Path, Exported]:
    out = trained.folder / "exported"
    value, _ = trained.export(RECIPE, out)
    return out, value


def test_training_is_tracked_while_it_runs_and_clears_its_checkpoints(trained: _Trained) -> None:
    assert trained.value.val_accuracy == 1.0
    assert trained.value.tracking_run_id == "tracked-test"
    assert trained.tracker.status == "FINISHED"
    assert {step for _, _, step in trained.tracker.metrics} == set(range(1, trained.value.epochs_run + 1))
    assert not (trained.folder / "checkpoints").exists()


def test_the_package_answers_like_the_network(trained: _Trained, exported: tuple[Path, Exported]) -> None:
    package = model_package.load(exported[0] / "package")
    network = load_network(trained.folder / "trained" / "weights.pt", RECIPE, len(CLASS_NAMES))
    val = pixelset.load(trained.folder / "prepared").splits["val"]
    outputs = Classifier(package, "fp32", provider="cpu").predict_pixels(val.pixels.rows(np.arange(90)))
    assert np.abs(outputs.logits - reference_logits(network, val.pixels, 1)).max() < 1e-4
    scaled = outputs.logits / package.variants["fp32"].temperature
    exponentials = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    assert np.allclose(outputs.probabilities, exponentials / exponentials.sum(axis=1, keepdims=True), atol=1e-5)
    assert package.description.parity.max_logit_difference <= RECIPE.export.max_logit_difference
    images = [striped(label, 10_000 + label) for label in range(3)]
    assert Classifier(package).predict_bytes(images).logits.argmax(axis=1).tolist() == [0, 1, 2]


def test_test_time_views_are_part_of_the_graph(trained: _Trained) -> None:
    recipe = override(RECIPE, {"evaluation.tta": "mirror", "export.int8": False})
    trained.export(recipe, trained.folder / "mirrored")
    weights = trained.folder / "trained" / "weights.pt"
    val = pixelset.load(trained.folder / "prepared").splits["val"]
    plain = load_network(weights, RECIPE, len(CLASS_NAMES))
    expected = (
        reference_logits(plain, val.pixels, 1) + reference_logits(plain, val.pixels.rows(np.arange(90))[:, :, ::-1], 1)
    ) / 2
    package = model_package.load(trained.folder / "mirrored" / "package")
    outputs = Classifier(package, "fp32", provider="cpu").predict_pixels(val.pixels.rows(np.arange(90)))
    assert np.abs(outputs.logits - expected).max() < 1e-4


def test_the_package_holds_the_golden_set_and_every_variant_is_proved_on_it(exported: tuple[Path, Exported]) -> None:
    package = model_package.load(exported[0] / "package")
    cases = [image.case for image in package.golden]
    assert cases.count("val") == 64
    assert set(cases) == {"val", "exif", "cmyk", "16-bit", "palette", "alpha"}
    assert set(package.variants) == {"fp32", "int8"} == set(exported[1].variants)
    for variant in package.variants:
        assert prove(Classifier(package, variant, provider="cpu")).num_images == len(cases)


def test_int8_is_quantized_and_has_its_own_temperature(exported: tuple[Path, Exported]) -> None:
    package = model_package.load(exported[0] / "package")
    operators = {node.op_type for node in onnx.load(package.folder / package.variants["int8"].file).graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= operators
    pixels = np.random.default_rng(0).integers(0, 256, (4, SIDE, SIDE, 3)).astype(np.uint8)
    outputs = Classifier(package, "int8", provider="cpu").predict_pixels(pixels)
    scaled = outputs.logits / package.variants["int8"].temperature
    exponentials = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    assert np.allclose(outputs.probabilities, exponentials / exponentials.sum(axis=1, keepdims=True), atol=1e-5)


def test_an_export_repeats_bit_for_bit_and_holds_no_latency(trained: _Trained, exported: tuple[Path, Exported]) -> None:
    recipe = override(RECIPE, {"export.latency_budget_ms": 1000.0})
    first, second = (trained.folder / name for name in ("first", "second"))
    results = [trained.export(recipe, out) for out in (first, second)]
    assert results[0][0] == results[1][0]
    assert set(results[0][1]) == {"fp32", "int8"}
    assert model_package.load(first / "package").digest == model_package.load(second / "package").digest
    assert (first / "variants.json").read_bytes() == (second / "variants.json").read_bytes()
    assert (first / "package" / "model.onnx").read_bytes() == (exported[0] / "package" / "model.onnx").read_bytes()


@pytest.mark.parametrize("changes", [{"augmentation.crop": "resized"}, {"loading.strategy": "stream"}])
@pytest.mark.parametrize("counts", [{"train": 150, "val": 90}, {"train": 60}])
def test_a_package_is_the_same_whatever_way_training_images_are_stored(
    trained: _Trained, tmp_path: Path, changes: Mapping[str, str], counts: Mapping[str, int]
) -> None:
    """int8 is calibrated, and judged where there are no validation images, on pixels as serving makes them."""
    storage, training_set = write_training_set(tmp_path, dict(counts))
    (tmp_path / "trained").symlink_to(trained.folder / "trained")
    digests = []
    timeless = override(RECIPE, {"export.latency_budget_ms": 1000.0})  # else the faster variant of the moment serves
    for number, recipe in enumerate((RECIPE, override(RECIPE, changes))):
        (tmp_path / "prepared").mkdir()
        prepare(training_set, CLASS_NAMES, storage, recipe, tmp_path / "prepared")
        mine = _Trained(folder=tmp_path, storage=storage, value=trained.value, tracker=trained.tracker)
        value, _ = mine.export(timeless, tmp_path / str(number))
        assert "int8" in value.variants
        digests.append(model_package.load(tmp_path / str(number) / "package").digest)
        (tmp_path / "prepared").rename(tmp_path / f"prepared-{number}")
    assert digests[0] == digests[1]


def test_too_few_validation_images_leave_fp32_with_the_reason(trained: _Trained) -> None:
    out = trained.folder / "few"
    value, _ = trained.export(override(RECIPE, {"export.min_int8_images": 1000}), out)
    assert value.variants == ("fp32",)
    assert "90 validation images, 1000" in model_package.load(out / "package").description.decisions["int8"]
    assert "90 validation images" in json.loads((out / "variants.json").read_text())["int8"]["decision"]


def test_an_int8_variant_out_of_bounds_is_left_out_with_the_reason(trained: _Trained) -> None:
    out = trained.folder / "strict"
    value, _ = trained.export(override(RECIPE, {"export.max_int8_accuracy_loss": 0.0}), out)
    assert value.variant == "fp32"
    assert not (out / "package" / "model.int8.onnx").exists()
    assert model_package.load(out / "package").description.decisions["int8"].startswith("refused:")


def test_an_int8_variant_out_of_bounds_stops_the_chain_where_it_is_required(trained: _Trained) -> None:
    recipe = override(RECIPE, {"export.max_int8_accuracy_loss": 0.0, "export.require_int8": True})
    with pytest.raises(GateRejected, match=r"may lose up to [\d.]+% of accuracy, 0\.00% is the most allowed"):
        trained.export(recipe, trained.folder / "required")


def test_a_graph_that_does_not_match_stops_the_chain(trained: _Trained) -> None:
    with pytest.raises(GateRejected, match="nothing is registered"):
        trained.export(override(RECIPE, {"export.max_logit_difference": 0.0}), trained.folder / "exact")
    expected = np.array([[1.0, 0.9995]], np.float32)
    with pytest.raises(GateRejected, match="changes 1 of 1"):
        check_parity(expected, expected[:, ::-1].copy(), bound=1e-3, opset=18)
    with pytest.raises(GateRejected):
        check_parity(expected, np.full_like(expected, np.nan), bound=1e-3, opset=18)
