"""What int8 leaves in float, and that pixels are normalized by rows there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, compose, helper, numpy_helper

from pipelines.adapters.quantization import OnnxQuantizer
from pipelines.adapters.quantization.pixel_rows import normalize_rows
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
    export_onnx(
        Views(networks.build(recipe.model, 3), "none").eval(),
        1.0,
        spec_of(recipe.preprocessing),
        tmp_path / "fp32.onnx",
    )
    pixels = np.random.default_rng(0).integers(0, 256, (8, side, side, 3), dtype=np.uint8)
    assert OnnxQuantizer().quantize(tmp_path / "fp32.onnx", tmp_path / "int8.onnx", pixels)
    session = onnxruntime.InferenceSession(tmp_path / "int8.onnx", providers=["CPUExecutionProvider"])
    probabilities = session.run(["probabilities"], {"pixels_NHWC": pixels})[0]
    assert probabilities.sum(axis=1) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("tta", ["none", "mirror_shift"])
def test_pixels_are_normalized_by_rows_with_the_same_bits(tta: str, tmp_path: Path) -> None:
    recipe = from_dict(
        {"name": "tiny", "model": {"backbone": "small"}, "preprocessing": {"height": 12, "width": 20, "fit": "crop"}}
    )
    spec, path = spec_of(recipe.preprocessing), tmp_path / "fp32.onnx"
    export_onnx(Views(networks.build(recipe.model, 3), tta).eval(), 2.0, spec, path)
    pixels = np.random.default_rng(0).integers(0, 256, (32, 12, 20, 3), dtype=np.uint8)
    model = onnx.load(path)
    assert normalize_rows(model) == 1
    onnx.checker.check_model(model, full_check=True)
    check_same_bits(path.read_bytes(), model.SerializeToString(), pixels)

    assert OnnxQuantizer().quantize(path, tmp_path / "int8.onnx", pixels)
    nodes = onnx.load(tmp_path / "int8.onnx").graph.node
    names = [node.name for node in nodes]
    assert {f"pixel_rows_0/{one}" for one in ("rows_of_pixels", "Cast_0", "Sub_1", "Mul_2", "image")} <= set(names)


def test_torchvisions_normalization_too_and_its_constants_are_gone(tmp_path: Path) -> None:
    model = hand_made([("Div", 255.0), ("Sub", [1.0, 2.0, 3.0]), ("Div", [4.0, 5.0, 6.0])])
    plain = model.SerializeToString()
    assert normalize_rows(model) == 1
    pixels = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    check_same_bits(plain, model.SerializeToString(), pixels)
    used = {name for node in model.graph.node for name in node.input}
    assert {one.name for one in model.graph.initializer} <= used


@pytest.mark.parametrize(
    "steps",
    [
        pytest.param([], id="nothing to normalize"),
        pytest.param([("Mul", 2.0)], id="one number, which costs nothing"),
        pytest.param([("Relu", None), ("Mul", [1.0, 2.0, 3.0])], id="something else between"),
        pytest.param([("Sub", np.zeros((3, 8, 8), np.float32))], id="a mean image"),
    ],
)
def test_what_is_no_such_chain_stays(steps: list[tuple[str, Any]]) -> None:
    model = hand_made(steps)
    before = model.SerializeToString()
    assert normalize_rows(model) == 0
    assert model.SerializeToString() == before


def test_every_view_of_an_image_has_its_chain() -> None:
    one, other = (hand_made([("Sub", [1.0, 2.0, 3.0])], f"view_{number}/") for number in range(2))
    model = compose.merge_models(one, other, io_map=[], name="views")
    plain = model.SerializeToString()
    assert normalize_rows(model) == 2
    onnx.checker.check_model(model, full_check=True)
    pixels = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    check_same_bits(plain, model.SerializeToString(), pixels)


def test_what_others_read_on_the_way_stays() -> None:
    model = hand_made([("Sub", [1.0, 2.0, 3.0])])
    middle = next(node for node in model.graph.node if node.op_type == "Cast").output[0]
    model.graph.output.append(helper.make_tensor_value_info(middle, TensorProto.FLOAT, ["N", 3, 8, 8]))
    before = model.SerializeToString()
    assert normalize_rows(model) == 0
    assert model.SerializeToString() == before


def hand_made(steps: list[tuple[str, Any]], prefix: str = "") -> onnx.ModelProto:
    """uint8 [N, 8, 8, 3] to NCHW, to floats, through steps with a number, one of each channel, or an array."""
    nodes = [
        helper.make_node("Transpose", ["pixels_NHWC"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Cast", ["planes"], ["tensor_0"], to=TensorProto.FLOAT),
    ]
    constants = []
    for number, (operator, value) in enumerate(steps):
        inputs = [f"tensor_{number}"]
        if value is not None:
            array = np.asarray(value, np.float32)
            constants.append(numpy_helper.from_array(array[:, None, None] if array.ndim == 1 else array, f"c{number}"))
            inputs.append(f"c{number}")
        nodes.append(helper.make_node(operator, inputs, [f"tensor_{number + 1}"]))
    nodes.append(helper.make_node("Identity", [f"tensor_{len(steps)}"], ["logits"]))
    given = helper.make_tensor_value_info("pixels_NHWC", TensorProto.UINT8, ["N", 8, 8, 3])
    found = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 3, 8, 8])
    graph = helper.make_graph(nodes, "hand-made", [given], [found], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return compose.add_prefix(model, prefix) if prefix else model


def check_same_bits(first: bytes, second: bytes, pixels: np.ndarray) -> None:
    sessions = [onnxruntime.InferenceSession(one, providers=["CPUExecutionProvider"]) for one in (first, second)]
    answers = [session.run(None, {one.name: pixels for one in session.get_inputs()}) for session in sessions]
    for one, other in zip(*answers, strict=True):
        assert np.array_equal(one, other)
