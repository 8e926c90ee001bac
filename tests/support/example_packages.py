"""Small but real model packages for tests: an image's mean colour decides."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from pipelines.core import model_package
from pipelines.core.model_package import Description, GoldenImage, Lineage, ModelPackage, Parity, Variant
from pipelines.core.preprocessing import preprocess, spec_of
from pipelines.core.recipe import Preprocessing

COLOURS = ("red", "green", "blue")
SIDE = 8


def png(colour: tuple[int, int, int], seed: int = 0, side: int = SIDE) -> bytes:
    """A noisy picture of one colour; other seeds give other bytes."""
    noise = np.random.default_rng(seed).integers(-20, 21, (side, side, 3))
    pixels = np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def coloured(class_name: str, seed: int = 0, side: int = SIDE) -> bytes:
    return png(tuple(200 if class_name == name else 40 for name in COLOURS), seed, side)  # type: ignore[arg-type]


def onnx_model(weights: NDArray[np.float32], temperature: float) -> bytes:
    """Mean colour [N, 3] in 0..1 is the embedding; embedding @ weights [3, C] are the logits."""
    constants = {
        "scale": np.array(255.0, np.float32),
        "weights": weights.astype(np.float32),
        "temperature": np.array(temperature, np.float32),
        "axes": np.array([1, 2], np.int64),
    }
    nodes = [
        helper.make_node("Cast", ["pixels_NHWC"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["floats", "axes"], ["mean"], keepdims=0),
        helper.make_node("Div", ["mean", "scale"], ["embedding"]),
        helper.make_node("MatMul", ["embedding", "weights"], ["logits"]),
        helper.make_node("Div", ["logits", "temperature"], ["scaled"]),
        helper.make_node("Softmax", ["scaled"], ["probabilities"], axis=1),
    ]
    num_classes = weights.shape[1]
    graph = helper.make_graph(
        nodes,
        "mean-colour",
        [helper.make_tensor_value_info("pixels_NHWC", TensorProto.UINT8, ["N", SIDE, SIDE, 3])],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", num_classes]),
            helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", num_classes]),
            helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["N", 3]),
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def write_package(
    folder: Path,
    *,
    name: str = "colours",
    class_names: tuple[str, ...] = COLOURS,
    weights: NDArray[np.float32] | None = None,
    temperature: float = 1.0,
    snapshot_id: str = "0" * 64,
    run_id: str = "train_classifier/test",
) -> ModelPackage:
    """Write a sealed package without test metrics. `weights` [3, C] default to those that are always right."""
    folder.mkdir(parents=True)
    (folder / "golden").mkdir()
    chosen = 10 * np.eye(3, len(class_names), dtype=np.float32) if weights is None else weights
    (folder / "model.onnx").write_bytes(onnx_model(chosen, temperature))
    spec = spec_of(Preprocessing(height=SIDE, width=SIDE))
    golden, logits = [], []
    for index, colour in enumerate(COLOURS):
        data = coloured(colour)
        pixels = preprocess(data, spec)
        (folder / "golden" / f"{index:03d}.png").write_bytes(data)
        golden.append(
            GoldenImage(
                file=f"golden/{index:03d}.png",
                case="val",
                pixels_sha256=hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest(),
            )
        )
        logits.append(pixels.mean(axis=(0, 1), dtype=np.float64) / 255 @ chosen)
    np.save(folder / "golden" / "logits-fp32.npy", np.array(logits, np.float32))
    description = Description(
        name=name,
        class_names=class_names,
        variant="fp32",
        variants={"fp32": Variant(file="model.onnx", temperature=temperature, tolerances={"cpu": 1e-4, "cuda": 1e-3})},
        golden=tuple(golden),
        parity=Parity(num_images=3, max_logit_difference=0.0, bound=1e-3, num_changed_answers=0, opset=18),
        lineage=Lineage(snapshot_id=snapshot_id, recipe_digest="1" * 64, code_digest="2" * 64, run_id=run_id),
        embedding_dim=3,
    )
    return model_package.write(folder, description, spec)


RIGHT_PIXELS = np.stack(
    [np.full((SIDE, SIDE, 3), [200 if name == colour else 40 for name in COLOURS], np.uint8) for colour in COLOURS]
)
"""One image of each class, [3, SIDE, SIDE, 3]."""
