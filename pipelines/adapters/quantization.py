"""Static int8 quantization by ONNX Runtime: QDQ nodes around convolutions and matrix products."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.core.pixelset import Pixels

_INPUT = "pixels_NHWC"
_BATCH = 32
_TEMPERATURE = "temperature_of_int8"
# The softmax and what normalizes the pixels stay in float: cheap, and int8 would cost accuracy there.
_OPERATORS = ["Conv", "Gemm", "MatMul", "Add", "Mul", "GlobalAveragePool", "MaxPool", "Relu", "Clip", "HardSwish"]
_PRODUCTS = ("Conv", "Gemm", "MatMul")


class OnnxQuantizer:
    """Fulfils `core.ports.Quantizer`."""

    def quantize(self, model: Path, out: Path, calibration_pixels_NHWC: Pixels) -> bool:  # noqa: N803
        """Symmetric int8, per channel for weights, ranges by the largest values seen in calibration."""
        import onnx
        from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
        from onnxruntime.quantization.shape_inference import quant_pre_process

        if all(node.op_type != "Conv" for node in onnx.load(model).graph.node):
            return False
        logging.getLogger().addFilter(_without_advice)
        with tempfile.TemporaryDirectory(dir=out.parent) as folder:
            prepared = Path(folder) / "prepared.onnx"
            quant_pre_process(str(model), str(prepared), skip_symbolic_shape=True)
            quantize_static(
                str(prepared),
                str(out),
                _Reader(calibration_pixels_NHWC),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                calibrate_method=CalibrationMethod.MinMax,
                op_types_to_quantize=_OPERATORS,
                nodes_to_exclude=_float_nodes(onnx.load(prepared)),
            )
        return True

    def set_temperature(self, model: Path, temperature: float) -> None:
        """Divide the softmax's input by this temperature instead (a divisor of 1 has been optimized away)."""
        import onnx

        opened = onnx.load(model)
        graph = opened.graph
        producers = {name: node for node in graph.node for name in node.output}
        softmax = producers["probabilities"]
        before = producers[softmax.input[0]]
        if before.op_type == "Div":
            softmax.input[0] = before.input[0]
            graph.node.remove(before)
        divide = onnx.helper.make_node("Div", [softmax.input[0], _TEMPERATURE], [f"{_TEMPERATURE}/quotient"])
        graph.node.insert(list(graph.node).index(softmax), divide)
        softmax.input[0] = divide.output[0]
        graph.initializer.append(onnx.numpy_helper.from_array(np.array(temperature, np.float32), _TEMPERATURE))
        onnx.save(opened, model)


def _float_nodes(model: Any) -> list[str]:
    """Names of the nodes that stay in float: before the first convolution, and from the classifier on.

    The classifier's product is not what makes the logits where a divisor, a shape or an average over views follows.
    """
    nodes = list(model.graph.node)
    first = next(position for position, node in enumerate(nodes) if node.op_type == "Conv")
    producers = {name: node for node in nodes for name in node.output}
    names = [node.name for node in nodes[:first]]
    waiting, seen = ["logits"], set()
    while waiting:
        tensor = waiting.pop()
        if tensor in seen or tensor not in producers:
            continue
        seen.add(tensor)
        node = producers[tensor]
        names.append(node.name)
        if node.op_type not in _PRODUCTS:
            waiting += node.input
        elif (before := producers.get(node.input[0])) and before.op_type == "Relu":
            names.append(before.name)  # else its output would be rounded to eight bits on the way
    return names


class _Reader:
    """Calibration batches, as quantize_static asks for them."""

    def __init__(self, pixels: Pixels) -> None:
        self._batches: Iterator[Pixels] = iter(
            [pixels[start : start + _BATCH] for start in range(0, len(pixels), _BATCH)]
        )

    def get_next(self) -> dict[str, Pixels] | None:
        batch = next(self._batches, None)
        return None if batch is None else {_INPUT: np.ascontiguousarray(batch)}


def _without_advice(record: logging.LogRecord) -> bool:
    """Drops the library's advice to run the preparation that has been run."""
    return "pre-processing" not in record.getMessage()
