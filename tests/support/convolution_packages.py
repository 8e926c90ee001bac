"""Packages of real convolutional networks with int8 beside fp32. Nothing was learned: what they cost and whether their
answers agree does not depend on that.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from example_packages import COLOURS
from photographs import photograph

from pipelines.adapters.quantization import OnnxQuantizer
from pipelines.core import model_package
from pipelines.core.inference import Runtime
from pipelines.core.model_package import Description, GoldenImage, Lineage, ModelPackage, Parity, Variant
from pipelines.core.preprocessing import PreprocessingSpec, preprocess, spec_of
from pipelines.core.recipe import from_dict
from pipelines.training import networks
from pipelines.training.export import export_onnx

_FILES = {"fp32": "model.onnx", "int8": "model.int8.onnx"}
_NUM_GOLDEN = 16
_CONFIDENCE = 30.0


def write_convolution_package(
    folder: Path, variant: str = "fp32", *, name: str = "colours", backbone: str = "small", side: int = 32
) -> ModelPackage:
    """Write a sealed package that serves the variant, with weights of a fixed seed."""
    (folder / "golden").mkdir(parents=True)
    model = {"backbone": backbone}
    recipe = from_dict({"name": name, "model": model, "preprocessing": {"height": side, "width": side}})
    spec = spec_of(recipe.preprocessing)
    torch.manual_seed(0)
    network = networks.build(recipe.model, len(COLOURS)).eval()
    with torch.no_grad():  # else all answers would be nearly the same
        network.head.classifier.weight.mul_(_CONFIDENCE)
    opset = export_onnx(network, 1.0, spec, folder / _FILES["fp32"])
    golden, pixels = _write_golden(folder, spec)
    assert OnnxQuantizer().quantize(folder / _FILES["fp32"], folder / _FILES["int8"], pixels)
    for one, file in _FILES.items():
        runtime = Runtime((folder / file).read_bytes(), provider="cpu")
        np.save(folder / model_package.golden_logits_file(one), runtime.run_batch(pixels).logits)
    description = Description(
        name=name,
        class_names=COLOURS,
        variant=variant,
        variants={
            one: Variant(file=file, temperature=1.0, tolerances={"cpu": 1e-3, "cuda": 2e-2})
            for one, file in _FILES.items()
        },
        golden=golden,
        parity=Parity(num_images=_NUM_GOLDEN, max_logit_difference=0.0, bound=1e-3, num_changed_answers=0, opset=opset),
        lineage=Lineage(snapshot_id="0" * 64, recipe_digest="1" * 64, code_digest="2" * 64, run_id="train/test"),
        embedding_dim=runtime.embedding_dim,
    )
    return model_package.write(folder, description, spec)


def _write_golden(folder: Path, spec: PreprocessingSpec) -> tuple[tuple[GoldenImage, ...], np.ndarray]:
    """Images of the golden set and their pixels, which calibrate too."""
    found, pixels = [], []
    for number in range(_NUM_GOLDEN):
        data, file = photograph(number), f"golden/{number:03d}.jpg"
        (folder / file).write_bytes(data)
        pixels.append(preprocess(data, spec))
        found.append(GoldenImage(file=file, case="val", pixels_sha256=model_package.pixels_sha256(pixels[-1])))
    return tuple(found), np.stack(pixels)
