"""Every section of the benchmarks once, at a size that proves that it runs and nothing else."""

from __future__ import annotations

import dataclasses
import json
import math
import tarfile
from pathlib import Path
from typing import Any

import bench_loading
import bench_training
import numpy as np
import pytest
import torch
from bench import photographs, reference
from bench.clocks import ClockTracker
from bench.defaults import torch_defaults
from bench.photographs import Photographs
from bench.pixel_sets import decode_all
from bench.training import airbench
from bench.training.cifar import load_recipe

from pipelines.core.cores import num_cores
from pipelines.core.errors import SourceError, UserError
from pipelines.core.recipe import Model, Training, from_dict
from pipelines.training import devices, networks

TINY = """
[preprocessing]
height = 32
width = 32
[model]
backbone = "small"
width = 0.5
[training]
epochs = 2
batch_size = 16
threads = 1
[augmentation]
crop = "resized"
"""


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Photographs:
    """80 JPEGs of four tints with a validation split."""
    return photographs.generate(tmp_path_factory.mktemp("images"), count=80, width=72, height=60)


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    path = tmp_path / "tiny.toml"
    path.write_text(TINY)
    return str(path)


def run(bench: Any, capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    """The JSON's sections."""
    assert bench.main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {"cpu", "cores", "torch", "date"} <= found["machine"].keys()
    sections: dict[str, Any] = found["sections"]
    return sections


LOADING = ("--rounds", "2", "--lenient", "--side", "32", "--files", "40")


def test_loading_on_one_core_and_by_whole_loaders(images: Photographs, capsys: pytest.CaptureFixture[str]) -> None:
    sections = ("--section", "one-core", "--section", "loader", "--workers", "1")
    found = run(bench_loading, capsys, "--data", str(images.folder), *sections, *LOADING)
    assert set(found["one-core"]["rates"]) == {"reference", "reference, uint8", "photographs", "shards"}
    assert len(found["one-core"]["rates"]["shards"]["each"]) == 2
    assert found["one-core"]["conversion"]["shard_bytes"] > 40 * 40 * 40 * 3
    assert found["one-core"]["mean_difference_of_255"] < 6
    assert "shards, mapped" in found["loader"]["ratios"]


def test_streaming_is_watched_and_a_leak_is_seen(images: Photographs, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ("--images", "2000", "--steps", "16", "--leak", "20000000")
    found = run(bench_loading, capsys, "--data", str(images.folder), "--section", "memory", *sizes)["memory"]
    assert not found["runs"]["leaking on purpose"]["flat"]
    assert len(found["runs"]["streaming"]["samples"]) == 16


def test_step_rate_starts_both_loops_from_the_same_weights(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ("--side", "32", "--batch", "8", "--steps", "3", "--timed-steps", "1", "--limit", "40", "--rounds", "2")
    fp32 = '{"training.threads": 1, "training.precision": "fp32"}'
    found = run(bench_training, capsys, "--section", "step-rate", *sizes, "--lenient", "--set", fp32)["step-rate"]
    losses = found["losses"]
    assert losses["ours"][0] == pytest.approx(losses["default"][0], abs=1e-4)
    assert losses["ours"][2] == pytest.approx(losses["default"][2], abs=0.05)
    assert found["ratio"]["value"] > 0


def test_clothing_and_paired(images: Photographs, recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    sections = ("--section", "clothing", "--section", "paired", "--seeds", "2", "--minutes", "0.01")
    found = run(bench_training, capsys, "--data", str(images.folder), "--recipe", recipe, *sections)
    assert found["clothing"]["counts"] == {"train": 64, "val": 16, "test": 0}
    assert len(found["clothing"]["ours"]) == len(found["clothing"]["reference"]) == 2
    assert found["clothing"]["reference"][0]["epochs"] >= 1
    assert len(found["paired"]["accuracy"]["shards"]) == len(found["paired"]["accuracy"]["photographs"]) == 2
    assert math.isfinite(found["paired"]["difference_points"]["low"])


def test_memory_of_a_training(images: Photographs, recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--data", str(images.folder), "--recipe", recipe, "--section", "memory")
    assert run(bench_training, capsys, *arguments)["memory"]["peak_pss_bytes"] > 100e6


def test_cifar_through_the_steps_and_its_splits_for_elsewhere(
    images: Photographs, recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "splits.tar.gz"
    arguments = ("--data", str(images.folder), "--recipe", recipe, "--seeds", "1", "--out", str(out))
    found = run(bench_training, capsys, *arguments, "--section", "cifar", "--section", "splits")
    (seed,) = found["cifar"]["seeds"]
    assert len(seed["points"]) == 2
    assert seed["training_s"] >= seed["points"][-1][0]
    assert {0.0 <= seed[name] <= 1.0 for name in ("val", "val_tta", "test", "test_tta")} == {True}
    counts = {split: count for split, count in found["cifar"]["counts"].items() if split != "excluded"}
    assert counts == found["splits"]["counts"] == photographs.find(str(out), tmp_path).counts()


def test_gpu_feed_runs_on_a_cpu_and_is_open_otherwise(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ("--rounds", "2", "--lenient", "--timed-steps", "1", "--limit", "24")
    found = run(bench_training, capsys, "--section", "gpu-feed", "--tiny", *sizes)["gpu-feed"]
    assert set(found["fed"]["rates"]) == {"shards", "shards, resident", "JPEG", "synthetic"}
    assert found["beside_ratio"]["value"] > 0
    if not torch.cuda.is_available():
        assert run(bench_training, capsys, "--section", "gpu-feed", "--section", "airbench") == {
            "gpu-feed": {"open": "needs a GPU"},
            "airbench": {"open": "needs a GPU"},
        }


SCRIPT = """
import os, sys
with open(sys.argv[0]) as file:
    code = file.read()
import torch

class CifarNet(torch.nn.Module):
    def cuda(self):
        return self
    def compile(self, mode):
        pass

def print_training_details(variables, is_final_entry):
    raise AssertionError("replaced")

def main(run, model):
    data = torch.load(os.path.join("cifar10", "test.pt"))
    time_seconds = 2.5
    print_training_details(locals(), is_final_entry=True)
    return len(data["images"]) / 100
"""


def test_airbench_trains_on_our_pixels_and_tells_its_own_time(images: Photographs, tmp_path: Path) -> None:
    script = tmp_path / "checkout" / "airbench94_muon.py"
    script.parent.mkdir()
    script.write_text(SCRIPT)
    files = [dataclasses.replace(one, split="test") if one.split == "val" else one for one in images.files]
    recipe = from_dict({"name": "tiny", "preprocessing": {"height": 32, "width": 32}})
    data = decode_all(dataclasses.replace(images, files=files), recipe)
    airbench.write_cache(data, tmp_path / "cifar10")
    cached = torch.load(tmp_path / "cifar10" / "train.pt", weights_only=True)
    assert cached["images"].shape == (64, 32, 32, 3)
    assert np.array_equal(cached["images"][5], data.splits["train"].pixels.image(5))
    assert cached["labels"].tolist() == data.splits["train"].labels.tolist()
    control = airbench.Control(airbench.load_script(str(script)), tmp_path)
    assert control.run(0) == airbench.Run(seconds=2.5, training_s=2.5, accuracy=0.16)


def test_our_side_of_airbench_trains_and_is_judged_on_test(images: Photographs, tmp_path: Path) -> None:
    files = [
        dataclasses.replace(one, split="test") if number % 5 == 0 else one for number, one in enumerate(images.files)
    ]
    training = {"epochs": 1, "batch_size": 16, "threads": 1, "device": "cpu"}
    tiny = {"name": "tiny", "model": {"width": 0.5}, "training": training, "evaluation": {"tta": "mirror"}}
    recipe = from_dict(tiny)
    tracker = ClockTracker()
    data = decode_all(dataclasses.replace(images, files=files), recipe)
    turn = airbench.ours(data, recipe, tmp_path / "out", tracker)
    assert turn.seconds > turn.training_s > 0
    assert len(tracker.curve.points) == 1
    assert (tmp_path / "out" / "model.onnx").is_file()
    assert 0 <= turn.accuracy <= 1


def test_our_seconds_begin_with_the_whitening() -> None:
    network = networks.build(Model(backbone="airbench", embedding_dim=0, width=0.25), 3)
    start = airbench.Start()
    with start.noted():
        network.initialize(torch.randint(0, 256, (8, 16, 16, 3), dtype=torch.uint8))
    at = start.at
    assert at > 0
    start.on_start([], 1)
    assert start.at == at


def test_airbench_without_a_script_says_what_to_name() -> None:
    with pytest.raises(UserError, match=r"airbench94_muon\.py of a checkout"):
        airbench.load_script("")


def test_the_reference_stops_when_its_time_is_over(images: Photographs) -> None:
    done = reference.train(
        images.of("train"), images.of("val"), num_classes=4, side=32, seconds=0.01, workers=0, backbone="mobilenet_v2"
    )
    assert done.steps == len(done.accuracies) == 1


def test_photographs_come_from_tars_too(images: Photographs, tmp_path: Path) -> None:
    path = tmp_path / "images.tar"
    with tarfile.open(path, "w") as tar:
        tar.add(images.folder, "top")
    found = photographs.find(str(path), tmp_path)
    assert (found.class_names, found.counts()) == (images.class_names, images.counts())
    with pytest.raises(SourceError, match="DATA=nowhere: no such folder or tar"):
        photographs.find("nowhere", tmp_path)


@pytest.mark.heavy
def test_tracking_counts_what_steps_wait_for(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ("--side", "32", "--limit", "64", "--epochs", "1", "--batch", "16", "--rounds", "2", "--lenient")
    fast = '{"training.threads": 1, "model.backbone": "small"}'
    found = run(bench_training, capsys, "--section", "tracking", *sizes, "--set", fast)["tracking"]
    assert found["share"]["value"] > 0


def test_without_data_a_section_says_what_to_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench_training.main(["--section", "clothing", "--recipe", "pipelines/recipes/digits.toml"]) == 2
    assert "DATA=" in capsys.readouterr().err
    assert bench_training.parse([]).section == ["step-rate", "tracking", "gpu-feed"]


def test_the_recipes_that_sections_take_by_default_load() -> None:
    options = bench_training.parse(["--set", '{"training.epochs": 3}'])
    for name in ("cifar10", "clothing"):
        assert load_recipe(options, name).training.epochs == 3
    by_itself = load_recipe(bench_training.parse([]), "cifar10", airbench.SCHEDULE).training
    assert (by_itself.epochs, by_itself.batch_size, by_itself.optimizer) == (8, 2000, "muon")
    changed = load_recipe(options, "cifar10", airbench.SCHEDULE).training
    assert (changed.epochs, changed.batch_size) == (3, 2000)


def test_controls_run_under_torch_s_own_settings() -> None:
    devices.prepare(Training(threads=1, device="cpu"))
    with torch_defaults():
        assert not torch.are_deterministic_algorithms_enabled()
        assert torch.get_num_threads() == num_cores()
    assert torch.are_deterministic_algorithms_enabled()
    assert torch.get_num_threads() == 1


def test_the_reference_runs_under_them(images: Photographs, monkeypatch: pytest.MonkeyPatch) -> None:
    devices.prepare(Training(threads=1, device="cpu"))
    found: list[bool] = []
    evaluate = reference.evaluate

    def noting(*arguments: Any) -> float:
        found.append(torch.are_deterministic_algorithms_enabled())
        return evaluate(*arguments)

    monkeypatch.setattr(reference, "evaluate", noting)
    train, val = images.of("train")[:8], images.of("val")[:2]
    reference.train(train, val, num_classes=4, side=32, seconds=0.01, workers=0, backbone="mobilenet_v2")
    assert found == [False]


def test_a_limit_takes_so_many_files_of_every_class(images: Photographs) -> None:
    for most in (7, 55, 79, 80):
        some = images.limited(most)
        assert len(some.files) == len({one.path for one in some.files}) == most
    assert {one.label for one in images.limited(55).files} == {0, 1, 2, 3}
    assert images.limited(0) == images.limited(81) == images
