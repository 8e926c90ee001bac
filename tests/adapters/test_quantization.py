"""What int8 leaves in float, and that every backbone has an int8 variant."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from pipelines.adapters.quantization import OnnxQuantizer
from pipelines.core.preprocessing import spec_of
from pipelines.core.recipe import from_dict
from pipelines.training import networks
from pipelines.training.augmentation.tta import Views
from pipelines.training.export import export_onnx


@pytest.mark.parametrize("tta", ["none", "mirror_shift"])
@pytest.mark.parametrize(("backbone", "embedding_dim"), [("airbench", 0), ("small", 16), ("small", 0)])
def test_nothing_from_the_classifier_on_is_quantized(
    backbone: str, embedding_dim: int, tta: str, tmp_path: Path
) -> None:
    model = {"backbone": backbone, "embedding_dim": embedding_dim, "width": 0.25}
    recipe = from_dict({"name": "tiny", "model": model, "preprocessing": {"height": 16, "width": 16}})
    export_onnx(
        Views(networks.build(recipe.model, 3), tta).eval(), 1.0, spec_of(recipe.preprocessing), tmp_path / "fp32.onnx"
    )
    pixels = np.random.default_rng(0).integers(0, 256, (32, 16, 16, 3), dtype=np.uint8)
    assert OnnxQuantizer().quantize(tmp_path / "fp32.onnx", tmp_path / "int8.onnx", pixels)

    graph = onnx.load(tmp_path / "int8.onnx").graph
    nodes = list(graph.node)
    quantizing = ("QuantizeLinear", "DequantizeLinear")
    assert sum(node.op_type in quantizing for node in nodes) > 4
    producers = {name: node for node in nodes for name in node.output}
    classifier = [node for node in nodes if "/classifier/" in node.name and node.op_type in ("Gemm", "MatMul")]
    assert len(classifier) == 1
    assert not {producers[name].op_type for name in classifier[0].input if name in producers} & {*quantizing}
    after = nodes[nodes.index(classifier[0]) + 1 :]
    assert not [node.name for node in after if node.op_type in quantizing]


@pytest.mark.full
@pytest.mark.parametrize("backbone", networks.BACKBONES)
def test_every_backbone_has_an_int8_variant_that_opens(backbone: str, tmp_path: Path) -> None:
    model, side = {"backbone": backbone}, 64
    recipe = from_dict({"name": "tiny", "model": model, "preprocessing": {"height": side, "width": side}})
    export_onnx(networks.build(recipe.model, 3).eval(), 1.0, spec_of(recipe.preprocessing), tmp_path / "fp32.onnx")
    pixels = np.random.default_rng(0).integers(0, 256, (8, side, side, 3), dtype=np.uint8)
    assert OnnxQuantizer().quantize(tmp_path / "fp32.onnx", tmp_path / "int8.onnx", pixels)
    session = onnxruntime.InferenceSession(tmp_path / "int8.onnx", providers=["CPUExecutionProvider"])
    probabilities = session.run(["probabilities"], {"pixels_NHWC": pixels})[0]
    assert probabilities.sum(axis=1) == pytest.approx(1.0, abs=1e-5)
