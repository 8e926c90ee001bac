"""The house's graph around a foreign one: uint8 pixels in, logits, probabilities and embedding out. ONNX alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from pipelines.adapters.foreign_onnx.images import ImageInput
from pipelines.adapters.foreign_onnx.outputs import FLOOR
from pipelines.core.inference import INPUT, OUTPUTS

_PREFIX = "model/"
"""Of every foreign name, so that none is one of ours."""
_BATCH = "N"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How the foreign graph is used."""

    images: ImageInput
    output: str
    kind: str
    """`logits` or `probabilities`."""
    num_classes: int
    embedding: str
    """A tensor of the foreign graph; empty takes the logits."""
    embedding_dim: int
    pools: bool
    """The embedding is a map [N, D, H, W], whose mean over the image is taken."""


def wrap(model: Any, plan: Plan, temperature: float) -> Any:
    """A new ModelProto around a copy of this one. Equal models give equal bytes."""
    import onnx

    inner = onnx.ModelProto()
    inner.CopyFrom(model)
    if plan.images.batch:
        _free_batch(inner.graph)
    _strip(inner)
    for number, node in enumerate(inner.graph.node):
        node.name = node.name or f"{node.op_type}_{number}"
    inner = onnx.compose.add_prefix(inner, _PREFIX)
    graph = inner.graph
    front, back = _Nodes(), _Nodes()
    _before(front, plan)
    _after(back, plan, temperature)
    foreign = list(graph.node)
    del graph.node[:], graph.input[:], graph.output[:], graph.value_info[:]
    graph.node.extend(_needed([*front.nodes, *foreign, *back.nodes]))
    used = {name for node in graph.node for name in _inputs(node)}
    constants = [one for one in [*graph.initializer, *front.constants, *back.constants] if one.name in used]
    del graph.initializer[:]
    graph.initializer.extend(constants)
    graph.name = "imported"
    _declare(graph, plan)
    onnx.checker.check_model(inner)
    return inner


class _Nodes:
    """Nodes of ours, in order, with their constants."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def add(self, operator: str, inputs: list[str], output: str, **attributes: Any) -> str:
        from onnx import helper

        self.nodes.append(helper.make_node(operator, inputs, [output], name=f"house/{output}", **attributes))
        return output

    def constant(self, name: str, value: Any) -> str:
        from onnx import numpy_helper

        self.constants.append(numpy_helper.from_array(value, name))
        return name


def _before(nodes: _Nodes, plan: Plan) -> None:
    """Pixels to what the foreign input takes."""
    from onnx import TensorProto

    images, tensor = plan.images, INPUT
    if not images.is_uint8:
        # A row of constants: three that are repeated for each pixel take the runtime twenty times as long.
        factor, offset = (np.tile(one, (images.width, 1)) for one in (images.factor, images.offset))
        tensor = nodes.add("Cast", [tensor], "floats_NHWC", to=TensorProto.FLOAT)
        tensor = nodes.add("Mul", [tensor, nodes.constant("pixel_factor", factor)], "scaled_NHWC")
        tensor = nodes.add("Add", [tensor, nodes.constant("pixel_offset", offset)], "normalized_NHWC")
    if images.layout == "NCHW":
        tensor = nodes.add("Transpose", [tensor], "images_NCHW", perm=[0, 3, 1, 2])
    # The last of them, whichever it is, becomes the foreign input; a cast to the type that it has costs nothing.
    nodes.add("Cast", [tensor], _PREFIX + images.name, to=images.element_type)


def _after(nodes: _Nodes, plan: Plan, temperature: float) -> None:
    from onnx import TensorProto

    rows = nodes.constant("logits_shape", np.array([-1, plan.num_classes], np.int64))
    raw = nodes.add("Cast", [_PREFIX + plan.output], "answers", to=TensorProto.FLOAT)
    if plan.kind == "probabilities":
        raw = nodes.add("Clip", [raw, nodes.constant("least_probability", np.array(FLOOR, np.float32))], "clipped")
        raw = nodes.add("Log", [raw], "log_probabilities")
    logits = nodes.add("Reshape", [raw, rows], "logits")
    divisor = nodes.constant("temperature", np.array(temperature, np.float32))
    scaled = nodes.add("Div", [logits, divisor], "scaled_logits")
    nodes.add("Softmax", [scaled], "probabilities", axis=1)
    if not plan.embedding:
        nodes.add("Identity", [logits], "embedding")
        return
    features = nodes.add("Cast", [_PREFIX + plan.embedding], "features", to=TensorProto.FLOAT)
    if plan.pools:
        features = nodes.add("GlobalAveragePool", [features], "pooled_features")
    shape = nodes.constant("embedding_shape", np.array([-1, plan.embedding_dim], np.int64))
    nodes.add("Reshape", [features, shape], "embedding")


def _declare(graph: Any, plan: Plan) -> None:
    from onnx import TensorProto, helper

    images = plan.images
    dims = {"embedding": plan.embedding_dim if plan.embedding else plan.num_classes}
    graph.input.append(
        helper.make_tensor_value_info(INPUT, TensorProto.UINT8, [_BATCH, images.height, images.width, 3])
    )
    graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [_BATCH, dims.get(name, plan.num_classes)])
        for name in OUTPUTS
    )


def _free_batch(graph: Any) -> None:
    """Let go of a batch of 1 where it is written down as a constant: in the shapes that Reshape is given."""
    from onnx import numpy_helper

    tensors = {one.name: one for one in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].HasField("t"):
            tensors[node.output[0]] = node.attribute[0].t
    for node in graph.node:
        if node.op_type != "Reshape" or node.input[1] not in tensors:
            continue
        tensor = tensors[node.input[1]]
        dims = numpy_helper.to_array(tensor).tolist()
        if dims[:1] == [1]:
            # -1 is whatever is left; where another dimension is that already, 0 copies the input's own first one.
            freed = [0 if -1 in dims else -1, *dims[1:]]
            tensor.CopyFrom(numpy_helper.from_array(np.array(freed, np.int64), tensor.name))


def _strip(model: Any) -> None:
    """Take out what only describes, such as stack traces with the paths of the machine that exported it."""
    model.doc_string = model.graph.doc_string = ""
    del model.metadata_props[:], model.graph.metadata_props[:]
    for node in model.graph.node:
        node.doc_string = ""
        del node.metadata_props[:]


def _needed(nodes: list[Any]) -> list[Any]:
    """Those that an output of ours depends on, in order."""
    wanted, kept = set(OUTPUTS), []
    for node in reversed(nodes):
        if wanted.intersection(node.output):
            wanted.update(_inputs(node))
            kept.append(node)
    return kept[::-1]


def _inputs(node: Any) -> set[str]:
    """What a node takes, with what the graphs inside it take from around them."""
    names = set(node.input)
    for attribute in node.attribute:
        for inner in [attribute.g] if attribute.HasField("g") else list(attribute.graphs):
            names.update(one.name for one in inner.output)
            for child in inner.node:
                names |= _inputs(child)
    return names
