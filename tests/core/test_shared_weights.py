"""Weights that several processes share: the answers of the package's own file, and never those of a damaged one."""

from __future__ import annotations

import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from convolution_packages import write_convolution_package
from example_packages import write_package
from weights_answers import probabilities

from pipelines.core import shared_weights
from pipelines.core.model_package import ModelPackage
from pipelines.core.results import sha256_file


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> ModelPackage:
    return write_convolution_package(tmp_path_factory.mktemp("network") / "package")


@pytest.mark.parametrize("variant", ["fp32", "int8"])
def test_answers_are_the_very_same(network: ModelPackage, tmp_path: Path, variant: str) -> None:
    expected = probabilities(network, None, variant)
    for _ in ("made", "found"):
        assert np.array_equal(probabilities(network, tmp_path / "weights", variant), expected)
    (place,) = (tmp_path / "weights").iterdir()
    assert {path.name for path in place.iterdir()} == {"model.onnx", "weights.bin", "digests.json"}


def test_processes_that_start_together_make_one(network: ModelPackage, tmp_path: Path) -> None:
    with ProcessPoolExecutor(3, multiprocessing.get_context("spawn")) as pool:
        found = list(pool.map(probabilities, [network] * 3, [tmp_path / "weights"] * 3))
    assert all(np.array_equal(one, found[0]) for one in found)
    assert len(list((tmp_path / "weights").iterdir())) == 1


@pytest.mark.parametrize("file", ["weights.bin", "model.onnx", "digests.json"])
def test_what_is_damaged_is_made_again(network: ModelPackage, tmp_path: Path, file: str) -> None:
    expected = probabilities(network, tmp_path)
    (place,) = tmp_path.iterdir()
    intact = (place / file).read_bytes()
    (place / file).write_bytes(bytes([intact[0] ^ 1]) + intact[1:])
    assert np.array_equal(probabilities(network, tmp_path), expected)
    assert (place / file).read_bytes() == intact
    assert list(tmp_path.iterdir()) == [place]


def test_what_is_whole_and_does_not_open_leaves_the_bytes_to_serve(
    network: ModelPackage, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected = probabilities(network, tmp_path)
    (place,) = tmp_path.iterdir()
    (place / "model.onnx").write_bytes(b"what another build of the runtime wrote")
    digests = {name: sha256_file(place / name) for name in ("model.onnx", "weights.bin")}
    (place / "digests.json").write_text(json.dumps(digests))
    assert np.array_equal(probabilities(network, tmp_path), expected)
    assert "shared weights do not open" in caplog.text


def test_a_model_without_large_weights_is_shared_too(tmp_path: Path) -> None:
    package = write_package(tmp_path / "package")
    assert shared_weights.shared(package.read("model.onnx"), tmp_path / "weights") is not None
    assert np.array_equal(probabilities(package, tmp_path / "weights"), probabilities(package, None))


def test_where_nothing_can_be_written_the_bytes_serve(network: ModelPackage, tmp_path: Path) -> None:
    (tmp_path / "weights").write_text("a file where a folder should be")
    assert shared_weights.shared(network.read("model.onnx"), tmp_path / "weights") is None
    assert np.array_equal(probabilities(network, tmp_path / "weights"), probabilities(network, None))
