"""What ONNX Runtime would read from another file is refused, however the bytes are written."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from pipelines.core import onnx_file
from pipelines.core.onnx_file import has_external_data

DATA_LOCATION = 14
TWO_TO_32 = 2**32


def refused(model: bytes) -> bool:
    """External, or no protobuf that we would read: either is refused."""
    try:
        return has_external_data(model)
    except ValueError:
        return True


# --- bytes by hand -------------------------------------------------------------------------------------------------


def varint(value: int, num_bytes: int = 1) -> bytes:
    """In no fewer bytes than `num_bytes`: a number may have zeros before it."""
    found: list[int] = []
    while value or len(found) < num_bytes:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found[:-1], found[-1] & 0x7F])


def field(number: int, payload: bytes | int, *, beyond: int = 0, key_bytes: int = 1, value_bytes: int = 1) -> bytes:
    """One field. `beyond` is added to its key; `value_bytes` are those of its size where it has one."""
    wire, value = (0, payload) if isinstance(payload, int) else (2, len(payload))
    written = varint((number << 3 | wire) + beyond, key_bytes) + varint(value, value_bytes)
    return written + (b"" if isinstance(payload, int) else payload)


WHERE = field(1, b"location") + field(2, b"weights.bin")
TENSOR = helper.make_tensor("w", TensorProto.FLOAT, [1], [1.0])
TENSOR.ClearField("float_data")
BARE = TENSOR.SerializeToString()
"""A tensor without data."""
OUTSIDE = BARE + field(13, WHERE) + field(DATA_LOCATION, 1)
GRAPH = helper.make_graph(
    [helper.make_node("Identity", ["w"], ["y"])],
    "graph",
    [],
    [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
).SerializeToString()
MODEL = field(1, 8) + field(8, field(1, b"") + field(2, 17))


def holding(tensor: bytes, **how: int) -> bytes:
    """A model whose only weight is the tensor; `how` its field in the graph is written."""
    return MODEL + field(7, GRAPH + field(5, tensor, **how))


TRICKS: dict[str, bytes] = {
    "plainly": holding(OUTSIDE),
    **{
        f"key of the place in {length} bytes": holding(
            BARE + field(13, WHERE, key_bytes=length) + field(DATA_LOCATION, 1, key_bytes=length)
        )
        for length in range(2, 12)
    },
    **{
        f"key with bit {bit}": holding(
            BARE + field(13, WHERE, beyond=2**bit) + field(DATA_LOCATION, 1, beyond=2**bit),
        )
        for bit in range(32, 40)
    },
    "key of the tensor with bit 32": holding(OUTSIDE, beyond=TWO_TO_32),
    "key of the graph with bit 32": MODEL + field(7, GRAPH + field(5, OUTSIDE), beyond=TWO_TO_32),
    **{
        f"place in {length} bytes": holding(BARE + field(13, WHERE) + field(DATA_LOCATION, 1, value_bytes=length))
        for length in range(2, 12)
    },
    **{
        f"place with bit {bit}": holding(BARE + field(13, WHERE) + field(DATA_LOCATION, 1 + 2**bit))
        for bit in (31, 32, 62, 63, 64, 66, 69)
    },
    **{f"size in {length} bytes": holding(OUTSIDE, value_bytes=length) for length in range(2, 12)},
    **{
        f"size with bit {bit}": MODEL + field(7, GRAPH + varint(5 << 3 | 2) + varint(len(OUTSIDE) + 2**bit) + OUTSIDE)
        for bit in (31, 32, 34, 63, 64)
    },
    "place said twice": holding(BARE + field(13, WHERE) + field(DATA_LOCATION, 0) + field(DATA_LOCATION, 1)),
    "place taken back": holding(OUTSIDE + field(DATA_LOCATION, 0)),
    "place as text": holding(BARE + field(13, WHERE) + field(DATA_LOCATION, b"\1")),
    "graph in two pieces": MODEL + field(7, GRAPH) + field(7, field(5, OUTSIDE)),
    "graph between two empty ones": MODEL + field(7, b"") + field(7, GRAPH + field(5, OUTSIDE)) + field(7, b""),
    "before the rest": field(7, GRAPH + field(5, OUTSIDE)) + MODEL,
    "behind a field that nobody knows": holding(field(1000, b"\x00") + field(2**29 - 1, 5) + OUTSIDE),
    "behind an unknown group": holding(varint(99 << 3 | 3) + field(1, 1) + varint(99 << 3 | 4) + OUTSIDE),
    "in a group": MODEL + field(7, GRAPH + varint(5 << 3 | 3) + OUTSIDE + varint(5 << 3 | 4)),
    "behind field 0": holding(field(0, 0) + OUTSIDE),
    "behind field 0 of two bytes": holding(field(0, b"ab") + OUTSIDE),
    "behind a zero": field(7, GRAPH + field(5, OUTSIDE)) + MODEL + b"\0",
    "behind wire type 6": holding(varint(99 << 3 | 6) + OUTSIDE),
    "behind 4 bytes": holding(varint(99 << 3 | 5) + b"abcd" + OUTSIDE),
    "behind 8 bytes": holding(varint(99 << 3 | 1) + b"abcdefgh" + OUTSIDE),
    "before 8 bytes of which 3 are missing": holding(OUTSIDE + varint(99 << 3 | 1) + b"abcde"),
}


FOLLOWED = ("key with bit 32", "key with bit 34", "key of the tensor with bit 32", "behind an unknown group")
"""Some that the runtime is known to take: else this would compare nothing."""


def follows(model: bytes) -> bool:
    """ONNX Runtime answers with what stands in the file."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    # To fold constants it wants the model's path, and fails where it has bytes.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        return bool(session.run(None, {})[0] == [42.0])
    except Exception:  # the runtime's have no base of their own
        return False


def test_a_model_that_the_runtime_takes_to_another_file_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    np.array([42], np.float32).tofile("weights.bin")
    followed = {name for name, model in TRICKS.items() if follows(model)}
    assert followed >= {"plainly", *FOLLOWED}
    assert {name for name in followed if not refused(TRICKS[name])} == set()


@pytest.mark.parametrize(
    "model",
    [
        field(1, 8, beyond=TWO_TO_32),
        field(1, 8, key_bytes=6),
        field(1, 8, value_bytes=11),
        field(2, b"name", value_bytes=6),
        varint(2 << 3 | 2) + varint(4 + 2**31) + b"name",
        varint(2 << 3 | 2) + varint(4 + 2**64) + b"name",
        varint(2 << 3 | 2) + varint(4) + b"nam",
        varint(99 << 3 | 1) + b"abcdefg",
        varint(99 << 3 | 5) + b"abc",
        varint(99 << 3 | 5, 2)[:1],
        varint(99 << 3 | 3) + varint(99 << 3 | 4),
        varint(99 << 3 | 6),
        varint(99 << 3 | 7),
        b"\0",
        field(0, b"name"),
        # As a protobuf this is a name; the runtime sees a file of its own format.
        field(2, b"\0\0ORTM" + bytes(40)) + MODEL,
    ],
)
def test_what_protobuf_and_we_could_read_otherwise_is_refused_as_broken(model: bytes) -> None:
    for text in (model, MODEL + model) if b"ORTM" not in model else (model,):
        with pytest.raises(ValueError, match=r"field|bytes|truncated|wire type|format"):
            has_external_data(text)


def test_what_is_written_at_length_is_read_all_the_same() -> None:
    inside = helper.make_tensor("w", TensorProto.FLOAT, [1], [1.0]).SerializeToString()
    for how in ({}, {"key_bytes": 5}, {"value_bytes": 5}):
        assert not has_external_data(holding(inside, **how))
        assert has_external_data(holding(OUTSIDE, **how))
    assert not has_external_data(holding(inside + field(DATA_LOCATION, 0, value_bytes=10)))


def test_bytes_changed_at_random_hide_nothing_that_protobuf_finds() -> None:
    chance = random.Random(7)
    constant = helper.make_node("Constant", [], ["value"], value=TensorProto.FromString(OUTSIDE))
    inner = helper.make_graph([constant], "graph", [], [])
    branch = helper.make_node("If", ["condition"], ["out"], then_branch=inner, else_branch=inner)
    original = bytearray(helper.make_model(helper.make_graph([branch], "outer", [], [])).SerializeToString())
    num_found = 0
    for _ in range(3000):
        changed = original.copy()
        for _ in range(chance.randint(1, 3)):
            place = chance.randrange(len(changed))
            changed[place : place + chance.randint(0, 2)] = chance.randbytes(chance.randint(0, 2))
        try:
            model = onnx.ModelProto.FromString(bytes(changed))
        except Exception:  # protobuf's own kind is another in each of its implementations
            continue
        if any(one.data_location == TensorProto.EXTERNAL for one in tensors_in(model)):
            num_found += 1
            assert refused(bytes(changed)), changed.hex()
    assert num_found > 200


def tensors_in(message: Any) -> Iterator[TensorProto]:
    if isinstance(message, TensorProto):
        yield message
    for described, value in message.ListFields():
        if described.message_type is not None:
            for one in value if described.is_repeated else [value]:
                yield from tensors_in(one)


# --- places --------------------------------------------------------------------------------------------------------


def in_constant(model: onnx.ModelProto) -> TensorProto:
    return model.graph.node.add().attribute.add().t


def in_subgraph(model: onnx.ModelProto) -> TensorProto:
    return model.graph.node.add().attribute.add().g.node.add().attribute.add().graphs.add().initializer.add()


PLACES: dict[str, Callable[[onnx.ModelProto], TensorProto]] = {
    "initializer": lambda model: model.graph.initializer.add(),
    "sparse values": lambda model: model.graph.sparse_initializer.add().values,
    "sparse indices": lambda model: model.graph.sparse_initializer.add().indices,
    "attribute": in_constant,
    "attribute's list": lambda model: model.graph.node.add().attribute.add().tensors.add(),
    "sparse attribute": lambda model: model.graph.node.add().attribute.add().sparse_tensor.values,
    "sparse attributes": lambda model: model.graph.node.add().attribute.add().sparse_tensors.add().indices,
    "graphs of graphs": in_subgraph,
    "function": lambda model: model.functions.add().node.add().attribute.add().t,
    "function's default": lambda model: model.functions.add().attribute_proto.add().t,
    "training's beginning": lambda model: model.training_info.add().initialization.initializer.add(),
    "training's step": lambda model: model.training_info.add().algorithm.initializer.add(),
}


@pytest.mark.parametrize("place", PLACES)
def test_external_data_is_found_wherever_a_tensor_can_hide(place: str) -> None:
    inside, outside = onnx.ModelProto(ir_version=8), onnx.ModelProto(ir_version=8)
    PLACES[place](inside).CopyFrom(helper.make_tensor("inside", TensorProto.FLOAT, [1], [1.0]))
    PLACES[place](outside).CopyFrom(TensorProto.FromString(OUTSIDE))
    assert not has_external_data(inside.SerializeToString())
    assert has_external_data(outside.SerializeToString())
    with pytest.raises(ValueError, match="truncated"):
        has_external_data(inside.SerializeToString()[:-3])


def test_every_field_of_onnx_that_leads_to_a_tensor_is_looked_into() -> None:
    """By the descriptors of the onnx package: a version that adds a place fails here."""
    kinds = {
        "ModelProto": "model",
        "TrainingInfoProto": "training",
        "FunctionProto": "function",
        "GraphProto": "graph",
        "NodeProto": "node",
        "AttributeProto": "attribute",
        "SparseTensorProto": "sparse",
        "TensorProto": "tensor",
    }
    expected: dict[str, dict[int, str]] = {"tensor": {}}
    left: list[Any] = [onnx.ModelProto.DESCRIPTOR]
    while left:
        message = left.pop()
        if kinds[message.name] in expected:
            continue
        fields = [one for one in message.fields if leads_to_a_tensor(one.message_type, frozenset())]
        expected[kinds[message.name]] = {one.number: kinds[one.message_type.name] for one in fields}
        left.extend(one.message_type for one in fields)
    assert dict(onnx_file._CHILDREN) == expected


def leads_to_a_tensor(message: Any, above: frozenset[str]) -> bool:
    if message is None or message.name in above:
        return False
    return message.name == "TensorProto" or any(
        leads_to_a_tensor(one.message_type, above | {message.name}) for one in message.fields
    )


def test_what_is_nested_beyond_what_we_follow_is_refused() -> None:
    graph = GRAPH + field(5, OUTSIDE)
    for _ in range(40):
        graph = field(1, field(5, field(6, graph)))
    with pytest.raises(ValueError, match="nested"):
        has_external_data(MODEL + field(7, graph))
