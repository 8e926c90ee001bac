"""ONNX files from elsewhere: understood, wrapped, and refused in words."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from foreign_models import MEAN, NUM_CLASSES, SIDE, STD, TinyNetwork, export, pixels
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from pipelines.adapters.foreign_onnx import OnnxNetwork, files_of
from pipelines.adapters.quantization import OnnxQuantizer
from pipelines.core.errors import UserError
from pipelines.core.foreign import ForeignModel
from pipelines.core.inference import Outputs, Runtime

CLASSES = ("red", "green", "blue")


def opened(path: Path, **words: object) -> OnnxNetwork:
    model = ForeignModel(form="onnx", file=str(path), **{"classes": CLASSES, **words})  # type: ignore[arg-type]
    return OnnxNetwork(model, lambda spec: pixels(5, spec.height))


def answers(network: OnnxNetwork, folder: Path, temperature: float = 1.0) -> Outputs:
    """Of the wrapped graph, to all images at once."""
    network.write(temperature, folder / "wrapped.onnx")
    runtime = Runtime((folder / "wrapped.onnx").read_bytes(), provider="cpu")
    return runtime.run_batch(pixels())


def expected(network: TinyNetwork) -> np.ndarray:  # type: ignore[type-arg]
    """torch's own answers to the same pixels, normalized by hand."""
    images = torch.from_numpy(pixels())
    if not network.uint8:
        images = (images / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
    if network.layout == "NCHW":
        images = images.permute(0, 3, 1, 2)
    with torch.inference_mode():
        return network(images).numpy()


NORMALIZED = {"mean": MEAN, "std": STD}


@pytest.mark.parametrize("dynamic", [True, False], ids=["dynamic", "batch of 1"])
@pytest.mark.parametrize(
    ("form", "words"),
    [
        ({}, NORMALIZED),
        ({"layout": "NHWC"}, NORMALIZED),
        ({"layout": "NHWC", "uint8": True}, {}),
        ({"uint8": True}, {}),
    ],
    ids=["float NCHW", "float NHWC", "uint8 NHWC", "uint8 NCHW"],
)
def test_every_kind_of_input(form: dict[str, object], words: dict[str, object], dynamic: bool, tmp_path: Path) -> None:
    tiny = TinyNetwork(**form)  # type: ignore[arg-type]
    network = opened(export(tiny, tmp_path / "model.onnx", dynamic=dynamic), **words)
    found = answers(network, tmp_path, temperature=2.0)
    assert np.abs(found.logits - expected(tiny)).max() < 1e-4
    assert np.abs(network.logits(pixels(), 1) - expected(tiny)).max() < 1e-4
    halved = torch.softmax(torch.from_numpy(found.logits) / 2, 1).numpy()
    assert np.abs(found.probabilities - halved).max() < 1e-6
    assert found.embedding.shape == (5, 8), "what the last layer multiplies"
    assert (network.spec.height, network.spec.width, network.spec.resize) == (SIDE, SIDE, 18)


def test_logits_are_recovered_from_probabilities(tmp_path: Path) -> None:
    tiny = TinyNetwork(softmax=True)
    network = opened(export(tiny, tmp_path / "model.onnx"), **NORMALIZED)
    found = answers(network, tmp_path)
    assert "output: answers, probabilities (found on the images)" in network.notes
    assert np.abs(found.probabilities - expected(tiny)).max() < 1e-6
    assert np.abs(found.logits - network.logits(pixels(), 1)).max() < 1e-4
    assert np.abs(np.exp(found.logits).sum(axis=1) - 1).max() < 1e-4
    assert found.embedding.shape == (5, 8)


def test_the_wrapped_graph_can_be_quantized(tmp_path: Path) -> None:
    network = opened(export(TinyNetwork(softmax=True), tmp_path / "model.onnx"), **NORMALIZED)
    fp32 = answers(network, tmp_path)
    assert OnnxQuantizer().quantize(tmp_path / "wrapped.onnx", tmp_path / "int8.onnx", pixels(32))
    OnnxQuantizer().set_temperature(tmp_path / "int8.onnx", 2.0)
    int8 = Runtime((tmp_path / "int8.onnx").read_bytes(), provider="cpu").run_batch(pixels())
    assert np.abs(int8.logits - fp32.logits).max() < 0.1 * np.abs(fp32.logits).max()
    scaled = torch.softmax(torch.from_numpy(int8.logits) / 2, 1).numpy()
    assert np.abs(int8.probabilities - scaled).max() < 1e-6


def test_equal_files_give_equal_graphs_that_name_no_machine(tmp_path: Path) -> None:
    path = export(TinyNetwork(), tmp_path / "model.onnx")
    model = onnx.load(path)
    model.doc_string = model.graph.node[0].doc_string = f"traced in {tmp_path}"
    onnx.save(model, path)
    written = []
    for _ in range(2):
        opened(path).write(1.5, tmp_path / "wrapped.onnx")
        written.append((tmp_path / "wrapped.onnx").read_bytes())
    assert written[0] == written[1]
    assert str(tmp_path).encode() not in written[0]


def test_float16_and_an_input_range(tmp_path: Path) -> None:
    path = export(TinyNetwork(), tmp_path / "model.onnx")
    exact = opened(path, input_range="-1..1").logits(pixels(), 1)
    by_hand = opened(path, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)).logits(pixels(), 1)
    assert np.abs(exact - by_hand).max() < 1e-4
    half = onnx.load(path)
    cast_in = helper.make_node("Cast", ["half"], ["images"], to=TensorProto.FLOAT)
    cast_out = helper.make_node("Cast", ["answers"], ["half_answers"], to=TensorProto.FLOAT16)
    half.graph.node.insert(0, cast_in)
    half.graph.node.append(cast_out)
    half.graph.input[0].name, half.graph.output[0].name = "half", "half_answers"
    half.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT16
    half.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT16
    onnx.save(half, tmp_path / "half.onnx")
    network = opened(tmp_path / "half.onnx", input_range="-1..1")
    assert np.abs(answers(network, tmp_path).logits - exact).max() < 0.02 * np.abs(exact).max()


def test_an_old_opset_is_converted(tmp_path: Path) -> None:
    tiny = TinyNetwork()
    network = opened(export(tiny, tmp_path / "model.onnx", opset=11), **NORMALIZED)
    assert network.write(1.0, tmp_path / "wrapped.onnx") == 18
    assert np.abs(answers(network, tmp_path).logits - expected(tiny)).max() < 1e-4


def test_external_data_is_taken_in(tmp_path: Path) -> None:
    tiny = TinyNetwork()
    path = export(tiny, tmp_path / "model.onnx")
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert [one.name for one in files_of(path)] == ["model.onnx", "weights.bin"]
    network = opened(path, **NORMALIZED)
    assert list(network.origin.data) == ["weights.bin"]
    assert network.origin.size_bytes == path.stat().st_size + (tmp_path / "weights.bin").stat().st_size
    found = answers(network, tmp_path)
    (tmp_path / "weights.bin").unlink()
    assert np.abs(found.logits - expected(tiny)).max() < 1e-4
    with pytest.raises(UserError, match=r"keeps data in weights.bin, which is not beside it; copy it there"):
        opened(path)


def test_external_data_elsewhere_is_refused(tmp_path: Path) -> None:
    path = export(TinyNetwork(), tmp_path / "model.onnx")
    model = onnx.load(path)
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/passwd")
    path.write_bytes(model.SerializeToString())
    with pytest.raises(UserError, match="only files beside it are read: export it as one file"):
        opened(path)


def test_a_named_embedding_and_none(tmp_path: Path) -> None:
    path = export(TinyNetwork(), tmp_path / "model.onnx")
    convolved = next(node.output[0] for node in onnx.load(path).graph.node if node.op_type == "Conv")
    network = opened(path, embedding=convolved)
    assert answers(network, tmp_path).embedding.shape == (5, 8)
    assert f"embedding: {convolved}, 8 numbers (said so, the mean over the image)" in network.notes
    with pytest.raises(UserError, match="--embedding other: no such tensor; the last ones are"):
        opened(path, embedding="other")
    network = opened(_mean_colour(tmp_path / "mean.onnx"))
    found = answers(network, tmp_path)
    assert (found.embedding == found.logits).all()
    assert network.notes[-1].startswith("embedding: the logits themselves, for no layer before them was found")


def _mean_colour(path: Path, **changes: object) -> Path:
    """The mean of each channel is its class's logit: nothing multiplies anything."""
    return _graph(path, [helper.make_node("ReduceMean", ["images"], ["answers"], axes=[2, 3], keepdims=0)], **changes)


def _graph(
    path: Path,
    nodes: list[onnx.NodeProto],
    *,
    inputs: dict[str, list[object]] | None = None,
    outputs: dict[str, list[object]] | None = None,
    domain: str = "",
    constants: tuple[onnx.TensorProto, ...] = (),
) -> Path:
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "test",
        [value(name, TensorProto.FLOAT, dims) for name, dims in (inputs or {"images": ["N", 3, 16, 16]}).items()],
        [value(name, TensorProto.FLOAT, dims) for name, dims in (outputs or {"answers": ["N", 3]}).items()],
        list(constants),
    )
    imports = [helper.make_opsetid("", 17), *([helper.make_opsetid(domain, 1)] if domain else [])]
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=9), path)
    return path


@pytest.mark.parametrize(
    ("dims", "words", "text"),
    [
        (["N", "C", 16, "W"], {}, r"may be NCHW or NHWC: say which with --layout"),
        (["N", 3, "H", "W"], {}, r"images \(float \[N, 3, H, W\]\) leaves its size open: give --size, the side in px"),
        (["N", 3, 16, 16], {"size": 32}, r"--size 32: the input images \(float \[N, 3, 16, 16\]\) is 16 x 16 px"),
        (["N", 1, 16, 16], {}, r"has no 3 channels: only RGB images can be imported"),
        (["N", 3, 16, 16], {"layout": "NHWC"}, r"--layout NHWC: .* has no 3 channels there"),
        (
            ["N", 3, 16, 16],
            {"input": "x"},
            r"--input x: no such input; the model has images \(float \[N, 3, 16, 16\]\)",
        ),
        (["N", 3, 16], {}, r"which input takes the images\? The model has images"),
        (["N", 3, 16, 16], {"mean": (123.0, 116.0, 103.0)}, r"--mean 123,116,103: outside of 0..1; give --input-range"),
        (["N", 3, 16, 16], {"std": (0.0, 1.0, 1.0)}, r"--std 0,1,1: must be positive"),
        (["N", 3, 16, 16], {"resize": 8}, r"--resize 8: must be at least the 16 px"),
    ],
)
def test_an_input_that_is_not_clear(dims: list[object], words: dict[str, object], text: str, tmp_path: Path) -> None:
    path = _mean_colour(tmp_path / "model.onnx", inputs={"images": dims})
    with pytest.raises(UserError, match=text):
        opened(path, **words)


def test_two_inputs(tmp_path: Path) -> None:
    inputs = {"images": ["N", 3, 16, 16], "others": ["N", 3, 16, 16]}
    nodes = [
        helper.make_node("Add", ["images", "others"], ["sum"]),
        helper.make_node("ReduceMean", ["sum"], ["answers"], axes=[2, 3], keepdims=0),
    ]
    path = _graph(tmp_path / "model.onnx", nodes, inputs=inputs)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"which input takes the images\? .*images .*others .* with --input"):
        opened(path)
    with pytest.raises(UserError, match="the model needs more than images: others"):
        opened(path, input="images")


def test_outputs_that_are_not_clear(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("ReduceMean", ["images"], ["answers"], axes=[2, 3], keepdims=0),
        helper.make_node("Softmax", ["answers"], ["shares"], axis=1),
        helper.make_node("ReduceMean", ["images"], ["rows"], axes=[1, 2], keepdims=0),
    ]
    outputs = {"answers": ["N", 3], "shares": ["N", 3], "rows": ["N", 16]}
    path = _graph(tmp_path / "model.onnx", nodes, outputs=outputs)  # type: ignore[arg-type]
    listed = r"the model has answers \[N, 3\], shares \[N, 3\], rows \[N, 16\]"
    with pytest.raises(
        UserError, match=f"several outputs fit the 3 names of --classes: say which with --output; {listed}"
    ):
        opened(path)
    with pytest.raises(UserError, match=f"--output x: no such output; {listed}"):
        opened(path, output="x")
    with pytest.raises(UserError, match="--output rows: not a number for each of the 3 names"):
        opened(path, output="rows")
    with pytest.raises(UserError, match="no output has a number for each of the 4 names of --classes"):
        opened(path, classes=("a", "b", "c", "d"))
    with pytest.raises(UserError, match="--output-kind probabilities: the output's rows do not sum to one"):
        opened(path, output="answers", output_kind="probabilities")
    assert "output: shares, probabilities (found on the images)" in opened(path, output="shares").notes


def test_uint8_pixels_are_taken_as_they_are(tmp_path: Path) -> None:
    path = export(TinyNetwork(uint8=True), tmp_path / "model.onnx")
    with pytest.raises(UserError, match="--mean, --std and --input-range: the model takes uint8 pixels as they are"):
        opened(path, input_range="0..1")


class _FixedBatch(nn.Module):
    """Mixes the images of a batch, so that it cannot be freed."""

    def forward(self, images: Tensor) -> Tensor:
        return images.mean((2, 3)) - images.mean()


def test_a_batch_that_cannot_be_freed(tmp_path: Path) -> None:
    path = export(_FixedBatch(), tmp_path / "model.onnx", dynamic=False)
    with pytest.raises(UserError, match=r"fixed at 1 and cannot take several images at once \(other answers\); export"):
        opened(path)


def test_custom_operators_are_refused_by_name(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Magic", ["images"], ["sum"], domain="acme.ops"),
        helper.make_node("ReduceMean", ["sum"], ["answers"], axes=[2, 3], keepdims=0),
    ]
    path = _graph(tmp_path / "model.onnx", nodes, domain="acme.ops")
    with pytest.raises(UserError, match=r"custom operators, which serving does not have: acme.ops.Magic"):
        opened(path)


def test_files_that_are_no_onnx(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file"):
        opened(tmp_path / "none.onnx")
    path = tmp_path / "model.onnx"
    path.write_bytes(b"PK\x03\x04 something else")
    with pytest.raises(UserError, match="not an ONNX file"):
        opened(path)
    with path.open("wb") as file:
        file.truncate(2 * 1024**3)
    with pytest.raises(UserError, match=r"2,147,483,648 bytes; an ONNX file has at most 2,147,483,647"):
        opened(path)
    broken = helper.make_node("ReduceMean", ["nowhere"], ["answers"], axes=[2, 3], keepdims=0)
    with pytest.raises(UserError, match="not a valid ONNX model"):
        opened(_graph(path, [broken]))


def test_a_convolution_as_the_last_product(tmp_path: Path) -> None:
    """As in SqueezeNet: class maps, then their mean."""
    weights = numpy_helper.from_array(np.ones((NUM_CLASSES, 3, 1, 1), np.float32), "weights")
    nodes = [
        helper.make_node("Conv", ["images", "weights"], ["maps"]),
        helper.make_node("GlobalAveragePool", ["maps"], ["answers"]),
    ]
    outputs = {"answers": ["N", 3, 1, 1]}
    path = _graph(tmp_path / "model.onnx", nodes, outputs=outputs, constants=(weights,))  # type: ignore[arg-type]
    found = answers(opened(path, mean=(0.0,) * 3, std=(1.0,) * 3), tmp_path)
    assert np.abs(found.embedding - pixels().mean((1, 2)) / 255).max() < 1e-5
