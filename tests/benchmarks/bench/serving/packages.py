"""The models that serve: real packages, made once by the chain's own training and export, and kept."""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import tempfile
from pathlib import Path

import numpy as np
import torch

from bench.harness import progress
from bench.ours import train_folder
from bench.photographs import Photographs, arrange
from bench.report import Report, Table
from pipelines.adapters.quantization import OnnxQuantizer
from pipelines.core import model_package, pixelset
from pipelines.core.errors import NotFound
from pipelines.core.model_package import Lineage, ModelPackage
from pipelines.core.recipe import Recipe, from_dict
from pipelines.core.results import digest_json, sha256_file
from pipelines.steps.export import export
from pipelines.training import networks
from pipelines.training.trainer import WEIGHTS

SIZES = ("small", "large")
PRECISIONS = ("fp32", "int8")
LEAST = "least"
"""A few layers at 32 px, which take a tenth of a millisecond: what is left of a request is nearly all serving."""
_BACKBONES = {"small": "mobilenet_v2", "large": "resnet50", LEAST: "small"}
_NORM_BATCH = 16
_IMAGES = {"small": 160, "large": 64, LEAST: 160}
"""That a model is trained with, once: what it costs to run does not depend on how good it is, and nothing is claimed
of that. Untrained, its activations would be of sizes that no model has."""


def recipe_for(size: str, *, tiny: bool) -> Recipe:
    """224 px, but for LEAST; `tiny` is a few layers at 32 px, for the code's sake."""
    side = 32 if tiny or size == LEAST else 224
    return from_dict(
        {
            "name": f"bench-{size}",
            "preprocessing": {"height": side, "width": side},
            "model": {"backbone": "small" if tiny else _BACKBONES[size]},
            "training": {"epochs": 1, "batch_size": 16, "device": "cpu"},
            # int8 is measured whether or not a model that has learned so little survives it.
            "export": {
                "min_int8_images": 1,
                "max_int8_disagreement": 1.0,
                "max_int8_accuracy_loss": 1.0,
                "num_calibration_images": 16,
            },
        }
    )


def run(options: argparse.Namespace) -> Report:
    """Section `packages`: every package, made or found. Raises SourceError without photographs."""
    from bench.serving.stage import stage  # which makes its packages here

    with stage(options) as place:
        made = [place.package(size, precision) for size in SIZES for precision in PRECISIONS]
    rows = [[one.name, one.variant, one.digest[:12], _onnx_digest(one)[:12], str(one.folder)] for one in made]
    columns = ["", "serves", "package", "its ONNX file", "folder"]
    return Report(
        figures={f"{one.name}-{one.variant}": {"package": one.digest, "onnx": _onnx_digest(one)} for one in made},
        tables=[Table(title="trained for a few steps only", columns=columns, rows=rows)],
    )


def _onnx_digest(found: ModelPackage) -> str:
    return found.files[found.variants[found.variant].file]


def package(found: Photographs, folder: Path, size: str, precision: str, *, tiny: bool = False) -> ModelPackage:
    """The package of that size which serves that variant; made in `folder` where it is not there yet."""
    recipe = recipe_for(size, tiny=tiny)
    images = found.limited(_IMAGES[size])
    names = sorted(f"{one.split}/{one.label}/{one.path.name}" for one in images.files)
    # With this module's source: what it does to a network is part of what comes out.
    key = digest_json([dataclasses.asdict(recipe), names, sha256_file(Path(__file__))])
    made = folder / f"{recipe.name}-{key[:12]}"
    try:
        return model_package.load(made / precision)
    except NotFound:
        progress(f"making {made}")
        shutil.rmtree(made, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as place:
            _make(images, recipe, Path(place))
            (Path(place) / "variants").rename(made)
        return model_package.load(made / precision)


def _make(images: Photographs, recipe: Recipe, work: Path) -> None:
    """Train, export, and seal a copy of the package for each variant, which differ in nothing but which one serves."""
    arranged = arrange(images, work / "images")
    train_folder(arranged, recipe, work / "trained", [])
    _settle_norms(work / "trained", recipe)
    by_digest = {sha256_file(one.path): one.path for one in images.files}
    lineage = Lineage(snapshot_id="bench", recipe_digest="bench", code_digest="bench", run_id="train_classifier/bench")
    (work / "out").mkdir()
    parts = (work / "trained", work / "trained" / "pixels", recipe, lineage, OnnxQuantizer())
    export(*parts, lambda image_id: by_digest[image_id].read_bytes(), work / "out")
    exported = model_package.load(work / "out" / "package")
    for precision in PRECISIONS:
        copy = work / "variants" / precision
        shutil.copytree(exported.folder, copy)
        (copy / model_package.MANIFEST).unlink()
        description = dataclasses.replace(exported.description, variant=precision)
        model_package.write(copy, description, exported.preprocessing)


def _settle_norms(trained: Path, recipe: Recipe) -> None:
    """Give every batch norm the statistics of all training images, as a long training would end with.

    After ten steps the running ones are still mostly what they began with, activations fade from layer to layer, and a
    network of fifty layers answers the same to every image: comparing answers would show nothing.
    """
    data = pixelset.load(trained / "pixels")
    network = networks.build(recipe.model, len(data.class_names))
    network.load_state_dict(torch.load(trained / WEIGHTS, map_location="cpu", weights_only=True))
    for layer in network.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.reset_running_stats()
            layer.momentum = None  # the mean over all batches
    network.train()
    pixels = data.splits["train"].pixels
    rows = np.arange(len(pixels))
    with torch.no_grad():
        for start in range(0, len(rows), _NORM_BATCH):
            network(torch.from_numpy(pixels.rows(rows[start : start + _NORM_BATCH])))
    torch.save(network.state_dict(), trained / WEIGHTS)
