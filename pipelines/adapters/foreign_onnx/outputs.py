"""What a foreign graph answers with: which output, logits or probabilities, and which tensor is the embedding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.core.errors import UserError
from pipelines.core.foreign import ForeignModel

FLOOR = 1e-30
"""Probabilities below it count as it: their logarithms are the logits of a model that only gives probabilities."""
_SUM_TOLERANCE = 1e-3
_PRODUCTS = ("Gemm", "MatMul", "Conv")
_AFTER = frozenset(
    (
        *("Softmax", "LogSoftmax", "Add", "Sub", "Mul", "Div", "Cast", "Identity", "Dropout", "Clip", "Log"),
        *("Reshape", "Flatten", "Squeeze", "Relu", "GlobalAveragePool", "AveragePool", "ReduceMean"),
        *("QuantizeLinear", "DequantizeLinear"),
    )
)
"""What may stand between the classifier's product and the output."""

Answers = Mapping[str, NDArray[Any]]


def find_output(answers: Answers, model: ForeignModel) -> str:
    """The name of the output with a number for each class, by what it answers to some images.

    Raises UserError that lists what there is.
    """
    num_classes = len(model.classes)
    listed = ", ".join(f"{name} {['N', *found.shape[1:]]}".replace("'", "") for name, found in answers.items())
    fitting = [name for name, found in answers.items() if _fits(found, num_classes)]
    if model.output:
        if model.output not in answers:
            raise UserError(f"--output {model.output}: no such output; the model has {listed}")
        if model.output not in fitting:
            raise UserError(
                f"--output {model.output}: not a number for each of the {num_classes} names of --classes; the model "
                f"has {listed}"
            )
        return model.output
    if len(fitting) != 1:
        many = f"several outputs fit the {num_classes} names of --classes: say which with --output"
        none = f"no output has a number for each of the {num_classes} names of --classes"
        raise UserError(f"{many if fitting else none}; the model has {listed}")
    return fitting[0]


def _fits(found: NDArray[Any], num_classes: int) -> bool:
    return found.dtype.kind == "f" and found.ndim >= 2 and found[0].size == num_classes == found.shape[1]


def find_kind(rows: NDArray[np.float32], model: ForeignModel) -> str:
    """`probabilities` where all rows [N, C] are such, else `logits`. Raises UserError where that was said wrongly."""
    are = bool((rows >= 0).all() and (np.abs(rows.sum(axis=1) - 1) < _SUM_TOLERANCE).all())
    if model.output_kind == "probabilities" and not are:
        raise UserError(
            f"--output-kind probabilities: the output's rows do not sum to one (the first to {rows[0].sum():.4g})"
        )
    return model.output_kind or ("probabilities" if are else "logits")


def find_embedding(graph: Any, output: str) -> str:
    """The tensor that the last product before the output multiplies with its weights; empty where none is found."""
    producers = {name: node for node in graph.node for name in node.output}
    constants = {one.name for one in graph.initializer}

    def is_constant(tensor: str) -> bool:
        node = producers.get(tensor)
        return tensor in constants or (node is not None and all(is_constant(one) for one in node.input if one))

    tensor = output
    while node := producers.get(tensor):
        variable = [one for one in node.input if one and not is_constant(one)]
        if len(variable) != 1:
            return ""
        if node.op_type in _PRODUCTS:
            return str(variable[0])
        if node.op_type not in _AFTER:
            return ""
        tensor = variable[0]
    return ""


def check_embedding(name: str, graph: Any) -> None:
    """Raises UserError where the graph has no tensor of this name, with the names nearest to its end."""
    known: Sequence[str] = [tensor for node in graph.node for tensor in node.output if tensor]
    if name not in known:
        raise UserError(f"--embedding {name}: no such tensor; the last ones are {', '.join(known[-8:])}")
