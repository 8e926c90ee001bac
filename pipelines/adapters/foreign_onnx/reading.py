"""An ONNX file in memory, whole: its external data inside, only operators that the runtime knows, a usable opset."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipelines.core.errors import UserError
from pipelines.core.foreign import MAX_BYTES

_OLDEST_OPSET, _OPSET = 13, 18
"""From 13 on Softmax and quantization are what ours take them for; older files are converted to 18."""
_DOMAINS = frozenset(("", "ai.onnx", "ai.onnx.ml", "com.microsoft"))
"""Whose operators onnxruntime has."""


def files_of(path: Path) -> list[Path]:
    """The file, then those that hold its external data, by name. Raises UserError where one is missing or elsewhere."""
    return [path, *(path.parent / name for name in _external_names(_parse(path), path))]


def read(path: Path) -> Any:
    """The ModelProto, checked, with all data inside and its functions inlined. Raises UserError that says what to mend.

    No operator of another domain is in it, and its opset is at least 13.
    """
    import onnx
    from onnx.external_data_helper import load_external_data_for_model
    from onnx.inliner import inline_local_functions

    model = _parse(path)
    if _external_names(model, path):
        load_external_data_for_model(model, str(path.parent))
    _refuse_unknown_operators(model, path)
    try:
        model = _of_usable_opset(inline_local_functions(model))
        onnx.checker.check_model(model)
    except Exception as error:
        raise UserError(f"--onnx {path}: not a valid ONNX model: {_first_line(error)}; export it again") from error
    return model


def _parse(path: Path) -> Any:
    """The model without its external data."""
    import onnx

    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise UserError(f"--onnx {path}: {size:,} bytes; an ONNX file has at most {MAX_BYTES:,}")
        model = onnx.load_model_from_string(path.read_bytes())
    except OSError as error:
        raise UserError(f"--onnx {path}: {error.strerror}") from error
    except UserError:
        raise
    except Exception as error:  # protobuf's, by whichever of its implementations is installed
        raise UserError(f"--onnx {path}: not an ONNX file ({_first_line(error)})") from error
    if not model.graph.node:
        raise UserError(f"--onnx {path}: not an ONNX file, or one without a graph")
    return model


def _external_names(model: Any, path: Path) -> list[str]:
    names = {
        entry.value
        for tensor in _tensors(model.graph)
        for entry in tensor.external_data
        if entry.key == "location" and tensor.data_location == tensor.EXTERNAL
    }
    total = path.stat().st_size
    for name in sorted(names):
        found = path.parent / name
        if Path(name).is_absolute() or found.resolve().parent != path.resolve().parent:
            raise UserError(
                f"--onnx {path}: keeps data in {name}; only files beside it are read: export it as one file"
            )
        if not found.is_file():
            raise UserError(f"--onnx {path}: keeps data in {name}, which is not beside it; copy it there")
        total += found.stat().st_size
    if total > MAX_BYTES:
        raise UserError(f"--onnx {path}: {total:,} bytes with its data; a package holds {MAX_BYTES:,} at most")
    return sorted(names)


def _tensors(graph: Any) -> Iterator[Any]:
    """Every tensor of a graph and the graphs inside its nodes."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for inner in _graphs(attribute):
                yield from _tensors(inner)


def _graphs(attribute: Any) -> list[Any]:
    return [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]


def _operators(nodes: Any) -> Iterator[tuple[str, str]]:
    """Domain and operator of every node, of inner graphs too."""
    for node in nodes:
        yield node.domain, node.op_type
        for attribute in node.attribute:
            for inner in _graphs(attribute):
                yield from _operators(inner.node)


def _refuse_unknown_operators(model: Any, path: Path) -> None:
    known = _DOMAINS | {function.domain for function in model.functions}
    used = {*_operators(model.graph.node)}.union(*(_operators(function.node) for function in model.functions))
    custom = sorted(f"{domain}.{operator}" for domain, operator in used if domain not in known)
    if custom:
        raise UserError(
            f"--onnx {path}: custom operators, which serving does not have: {', '.join(custom)}; export the model with "
            "ONNX's own"
        )


def _of_usable_opset(model: Any) -> Any:
    from onnx.version_converter import convert_version

    opset = next((one.version for one in model.opset_import if one.domain in ("", "ai.onnx")), 1)
    return model if opset >= _OLDEST_OPSET else convert_version(model, _OPSET)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
