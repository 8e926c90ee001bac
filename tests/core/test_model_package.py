"""Model packages: what is sealed is what is read, and anything else is refused by the name of the file."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from example_packages import write_package
from onnx import TensorProto

from pipelines.core import model_package
from pipelines.core.errors import IntegrityError, NotFound
from pipelines.core.model_package import ModelPackage
from pipelines.core.values import Interval


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> ModelPackage:
    return write_package(tmp_path_factory.mktemp("package") / "package", temperature=1.5)


@pytest.fixture
def package(original: ModelPackage, tmp_path: Path) -> ModelPackage:
    shutil.copytree(original.folder, tmp_path / "package")
    return model_package.load(tmp_path / "package")


def test_what_was_sealed_is_read_back(package: ModelPackage) -> None:
    assert package.name == "colours"
    assert package.class_names == ("red", "green", "blue")
    assert package.variant == "fp32"
    assert package.temperature == 1.5
    assert package.lineage.snapshot_id == "0" * 64
    assert package.digest == hashlib.sha256((package.folder / "package.json").read_bytes()).hexdigest()
    assert package.golden_logits("fp32").shape == (len(package.golden), 3)


def test_equal_work_gives_equal_digests_and_the_run_shows_in_one_only(tmp_path: Path) -> None:
    first, second = write_package(tmp_path / "a"), write_package(tmp_path / "b")
    other_run = write_package(tmp_path / "c", run_id="train_classifier/other")
    assert first.digest == second.digest
    assert other_run.digest != first.digest
    assert other_run.content_digest == first.content_digest


def test_metrics_make_a_new_package_with_the_same_files(package: ModelPackage, tmp_path: Path) -> None:
    accuracy = Interval(value=0.9, low=0.8, high=0.95)
    measured = model_package.with_metrics(package, tmp_path / "measured", {"accuracy": accuracy}, 100)
    assert measured.metrics == {"accuracy": accuracy}
    assert measured.files == package.files
    assert measured.digest != package.digest


def _flip_a_byte(folder: Path) -> str:
    data = bytearray((folder / "model.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "model.onnx").write_bytes(data)
    return "model.onnx"


def _lose_an_image(folder: Path) -> str:
    victim = sorted((folder / "golden").glob("000*"))[0]
    victim.unlink()
    return victim.name


def _add_a_pickle(folder: Path) -> str:
    (folder / "weights.pkl").write_bytes(b"\x80\x04.")
    return "weights.pkl"


def _add_a_hidden_file(folder: Path) -> str:
    (folder / "golden" / ".note").write_text("boo")
    return ".note"


def _replace_by_a_link(folder: Path) -> str:
    (folder / "model.onnx").rename(folder.parent / "elsewhere.onnx")
    (folder / "model.onnx").symlink_to(folder.parent / "elsewhere.onnx")
    return "model.onnx"


def _tear_the_description(folder: Path) -> str:
    (folder / "package.json").write_bytes((folder / "package.json").read_bytes()[:-20])
    return "package.json"


def _list_a_pickle(folder: Path) -> str:
    (folder / "weights.pkl").write_bytes(b"\x80\x04.")
    table = json.loads((folder / "package.json").read_text())
    table["files"]["weights.pkl"] = hashlib.sha256(b"\x80\x04.").hexdigest()
    (folder / "package.json").write_text(json.dumps(table))
    return "weights.pkl"


@pytest.mark.parametrize(
    "tamper",
    [
        _flip_a_byte,
        _lose_an_image,
        _add_a_pickle,
        _add_a_hidden_file,
        _replace_by_a_link,
        _tear_the_description,
        _list_a_pickle,
    ],
)
def test_a_tampered_package_is_refused_by_the_name_of_the_file(
    package: ModelPackage, tamper: Callable[[Path], str]
) -> None:
    name = tamper(package.folder)
    with pytest.raises(IntegrityError, match=name.replace(".", r"\.")):
        model_package.load(package.folder)


def test_another_digest_than_expected_and_no_package_at_all(package: ModelPackage, tmp_path: Path) -> None:
    assert model_package.load(package.folder, digest=package.digest).digest == package.digest
    with pytest.raises(IntegrityError, match="expected"):
        model_package.load(package.folder, digest="0" * 64)
    with pytest.raises(NotFound):
        model_package.load(tmp_path)


def test_other_pixels_than_the_golden_ones_are_refused(package: ModelPackage) -> None:
    table = json.loads((package.folder / "package.json").read_text())
    table["preprocessing"]["filter"] = "box"
    table["preprocessing"]["height"] = 6
    (package.folder / "package.json").write_text(json.dumps(table))
    with pytest.raises(IntegrityError, match="golden/000"):
        model_package.load(package.folder)


def _reseal(folder: Path) -> None:
    """As an attacker would: the description fits the changed file."""
    table = json.loads((folder / "package.json").read_text())
    for name in table["files"]:
        table["files"][name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    (folder / "package.json").write_text(json.dumps(table))


def test_an_onnx_file_that_refers_to_another_file_is_refused(package: ModelPackage) -> None:
    path = package.folder / "model.onnx"
    model = onnx.load(path)
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../secrets")
    path.write_bytes(model.SerializeToString())
    _reseal(package.folder)
    with pytest.raises(IntegrityError, match=r"model\.onnx"):
        model_package.load(package.folder)


def test_no_array_of_a_package_is_a_pickle(package: ModelPackage) -> None:
    np.save(package.folder / "golden" / "logits-fp32.npy", np.array([{}], dtype=object))
    _reseal(package.folder)
    with pytest.raises(IntegrityError, match=r"logits-fp32\.npy"):
        model_package.load(package.folder).golden_logits("fp32")
