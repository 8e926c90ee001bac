"""The one inference path: its contract, its proof, its refusals."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from example_packages import COLOURS, RIGHT_PIXELS, coloured, write_package

from pipelines.core import model_package
from pipelines.core.errors import ImageError, IntegrityError, PlatformError, UserError
from pipelines.core.inference import OUTPUTS, BoundRun, Classifier, Runtime, changed_answers, prove
from pipelines.core.model_package import ModelPackage
from pipelines.core.preprocessing import preprocess


@pytest.fixture
def package(tmp_path: Path) -> ModelPackage:
    return write_package(tmp_path / "package", temperature=2.0)


def test_bytes_and_their_pixels_get_the_same_answers(package: ModelPackage) -> None:
    images = [coloured(name, seed) for seed in range(3) for name in COLOURS]
    pixels = np.stack([preprocess(data, package.preprocessing) for data in images])
    classifier = Classifier(package, batch_size=4)
    by_bytes, by_pixels = classifier.predict_bytes(images), classifier.predict_pixels(pixels)
    assert np.array_equal(by_bytes.logits, by_pixels.logits)
    assert by_bytes.logits.argmax(axis=1).tolist() == [0, 1, 2] * 3
    exponentials = np.exp(by_bytes.logits / 2.0)
    assert np.allclose(by_bytes.probabilities, exponentials / exponentials.sum(axis=1, keepdims=True), atol=1e-6)
    assert by_bytes.embedding.shape == (9, 3)


def test_batches_do_not_change_answers_and_none_is_fine(package: ModelPackage) -> None:
    pixels = np.concatenate([RIGHT_PIXELS] * 5)
    one, many = (Classifier(package, batch_size=size).predict_pixels(pixels) for size in (1, 64))
    assert np.allclose(one.logits, many.logits, atol=1e-5)
    nothing = Classifier(package).predict_bytes([])
    assert nothing.logits.shape == (0, 3)
    assert nothing.embedding.shape == (0, 3)


def test_bound_buffers_give_the_same_answers_batch_after_batch(package: ModelPackage) -> None:
    """What runs on a GPU, on the CPU's memory: buffers are written over, and no answer changes afterwards."""
    runtime = Runtime(package.read(package.variants["fp32"].file), provider="cpu")
    bound = BoundRun(runtime._session, "cpu")
    batches = [np.concatenate([RIGHT_PIXELS] * size)[::step] for size in (1, 2, *range(1, 12)) for step in (1, -1)]
    found = [bound(pixels) for pixels in batches]
    for pixels, outputs in zip(batches, found, strict=True):
        plain = runtime.run_batch(pixels)
        for name, output in zip(OUTPUTS, outputs, strict=True):
            assert np.array_equal(output, getattr(plain, name))


def test_a_bad_image_is_refused_with_its_reason(package: ModelPackage) -> None:
    with pytest.raises(ImageError) as caught:
        Classifier(package).predict_bytes([b"not an image"])
    assert caught.value.reason == "not_an_image"


def test_an_unknown_variant_and_a_missing_gpu_are_said(package: ModelPackage) -> None:
    with pytest.raises(UserError, match="fp32"):
        Classifier(package, "int8")
    if not Path("/proc/driver/nvidia/version").exists():
        with pytest.raises(PlatformError, match="CUDA"):
            Classifier(package, provider="cuda")


def test_a_sound_package_is_proved(package: ModelPackage) -> None:
    proof = prove(Classifier(package))
    assert proof.num_images == len(package.golden)
    assert proof.max_logit_difference <= proof.tolerance


def test_other_logits_than_promised_are_no_proof(package: ModelPackage) -> None:
    path = package.folder / "golden" / "logits-fp32.npy"
    logits = np.load(path)
    logits[1] += 0.1
    np.save(path, logits)
    table = json.loads((package.folder / "package.json").read_text())
    table["files"]["golden/logits-fp32.npy"] = hashlib.sha256(path.read_bytes()).hexdigest()
    (package.folder / "package.json").write_text(json.dumps(table))
    with pytest.raises(IntegrityError, match=r"golden/001\.png"):
        prove(Classifier(model_package.load(package.folder)))


def test_a_model_changed_after_loading_is_not_opened(package: ModelPackage) -> None:
    with (package.folder / "model.onnx").open("ab") as file:
        file.write(b"\x00")
    with pytest.raises(IntegrityError, match=r"model\.onnx"):
        Classifier(package)


def test_a_graph_with_other_outputs_is_not_ours(package: ModelPackage) -> None:
    model = onnx.load(package.folder / "model.onnx")
    del model.graph.output[2]
    with pytest.raises(IntegrityError, match="embedding"):
        Runtime(model.SerializeToString(), provider="cpu")


def test_a_changed_answer_counts_unless_it_was_a_tie() -> None:
    expected = np.array([[1.0, 0.0], [0.5, 0.4999]], np.float32)
    found = np.array([[0.0, 1.0], [0.4999, 0.5]], np.float32)
    assert changed_answers(expected, found, tie=1e-3).tolist() == [0]
    assert changed_answers(expected, found, tie=1e-6).tolist() == [0, 1]
