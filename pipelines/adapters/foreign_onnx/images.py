"""How a foreign graph takes its images: which input, in which layout, and what its numbers mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.core.errors import UserError
from pipelines.core.foreign import LAYOUTS, ForeignModel
from pipelines.core.pixelset import Pixels
from pipelines.core.preprocessing import PreprocessingSpec, resized_and_cropped

_CHANNELS = 3
# Mean and standard deviation of ImageNet's RGB in 0..1: what most published weights were trained with.
_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)
_RANGES = {"0..1": (1 / 255, 0.0), "-1..1": (2 / 255, -1.0), "0..255": (1.0, 0.0)}
"""Factor and offset of pixels 0 to 255."""
_USUAL_SHARE = 256 / 224
"""Of the shorter side to the side that is cut out of it, where nobody says otherwise."""


@dataclass(frozen=True, kw_only=True)
class ImageInput:
    """The input that takes the images."""

    name: str
    element_type: int
    """TensorProto.FLOAT, FLOAT16 or UINT8."""
    layout: str
    """NCHW or NHWC."""
    height: int
    width: int
    batch: int
    """Images that the graph takes at once; 0 for any number."""
    factor: NDArray[np.float32]
    """[3]: the graph is given pixels x factor + offset."""
    offset: NDArray[np.float32]
    spec: PreprocessingSpec
    notes: tuple[str, ...]

    @property
    def is_uint8(self) -> bool:
        return self.element_type == _types()["uint8"]

    def feed(self, pixels_NHWC: Pixels) -> NDArray[Any]:  # noqa: N803
        """What the original takes for uint8 [N, H, W, 3]."""
        images: NDArray[Any] = pixels_NHWC
        if not self.is_uint8:
            images = pixels_NHWC.astype(np.float32) * self.factor + self.offset
            if self.element_type == _types()["float16"]:
                images = images.astype(np.float16)
        return np.ascontiguousarray(images.transpose(0, 3, 1, 2) if self.layout == "NCHW" else images)


def find_input(graph: Any, model: ForeignModel) -> ImageInput:
    """Raises UserError that lists what there is and names the option that decides."""
    constants = {one.name for one in graph.initializer}
    inputs = [one for one in graph.input if one.name not in constants]
    chosen = _chosen(inputs, model)
    dims = [one.dim_value for one in chosen.type.tensor_type.shape.dim]
    layout = _layout(dims, chosen, model)
    height, width = _size(dims, layout, chosen, model)
    element_type = chosen.type.tensor_type.elem_type
    factor, offset, note = _normalization(model, element_type == _types()["uint8"])
    resize = model.resize or round(max(height, width) * _USUAL_SHARE)
    spec = resized_and_cropped(height, width, resize, model.filter or "bilinear")
    pixels = f"pixels: shorter side to {spec.resize} px ({spec.filter}), centre {width} x {height}"
    return ImageInput(
        name=chosen.name,
        element_type=element_type,
        layout=layout,
        height=height,
        width=width,
        batch=dims[0],
        factor=factor,
        offset=offset,
        spec=spec,
        notes=(f"input: {_described(chosen)}, {layout}; {note}", pixels + ("" if model.resize else " (assumed)")),
    )


def _chosen(inputs: Sequence[Any], model: ForeignModel) -> Any:
    listed = "; ".join(map(_described, inputs)) or "none"
    if model.input:
        found = [one for one in inputs if one.name == model.input]
        if not found:
            raise UserError(f"--input {model.input}: no such input; the model has {listed}")
    else:
        found = [one for one in inputs if _may_be_images(one)]
    if len(found) != 1 or not _may_be_images(found[0]):
        raise UserError(
            f"which input takes the images? The model has {listed}; name one of float32, float16 or uint8 with four "
            "dimensions with --input"
        )
    if others := [_described(one) for one in inputs if one.name != found[0].name]:
        raise UserError(f"the model needs more than images: {'; '.join(others)}; export it with these as constants")
    return found[0]


def _may_be_images(value: Any) -> bool:
    tensor = value.type.tensor_type
    return tensor.elem_type in _types().values() and len(tensor.shape.dim) == 4


def _size(dims: Sequence[int], layout: str, chosen: Any, model: ForeignModel) -> tuple[int, int]:
    """Height and width, px."""
    height, width = (dims[2], dims[3]) if layout == "NCHW" else (dims[1], dims[2])
    if model.size:
        if (height or model.size, width or model.size) != (model.size, model.size):
            raise UserError(
                f"--size {model.size}: the input {_described(chosen)} is {width} x {height} px; leave it out"
            )
        height = width = model.size
    if not height or not width:
        raise UserError(f"the input {_described(chosen)} leaves its size open: give --size, the side in px")
    return height, width


def _layout(dims: Sequence[int], chosen: Any, model: ForeignModel) -> str:
    possible = [layout for layout in LAYOUTS if dims[layout.index("C")] in (0, _CHANNELS)]
    if model.layout:
        if model.layout not in possible:
            raise UserError(f"--layout {model.layout}: the input {_described(chosen)} has no 3 channels there")
        return model.layout
    certain = [layout for layout in possible if dims[layout.index("C")] == _CHANNELS]
    decided = certain or possible
    if len(decided) != 1:
        raise UserError(
            f"the input {_described(chosen)} may be {' or '.join(decided)}: say which with --layout"
            if decided
            else f"the input {_described(chosen)} has no 3 channels: only RGB images can be imported"
        )
    return decided[0]


def _normalization(model: ForeignModel, is_uint8: bool) -> tuple[NDArray[np.float32], NDArray[np.float32], str]:
    """Factor and offset by channel, and what a person should know of them."""
    said = bool(model.mean or model.std or model.input_range)
    if is_uint8:
        if said:
            raise UserError("--mean, --std and --input-range: the model takes uint8 pixels as they are; leave them out")
        return np.ones(3, np.float32), np.zeros(3, np.float32), "pixels 0 to 255 as they are"
    name = model.input_range or "0..1"
    scale, shift = _RANGES[name]
    mean, std = (model.mean or (0.0,) * 3, model.std or (1.0,) * 3) if said else (_MEAN, _STD)
    if not shift <= min(mean) <= max(mean) <= 255 * scale + shift:
        raise UserError(f"--mean {_numbers(mean)}: outside of {name}; give --input-range, one of {', '.join(_RANGES)}")
    if min(std) <= 0:
        raise UserError(f"--std {_numbers(std)}: must be positive")
    factor = scale / np.array(std)
    offset = (shift - np.array(mean)) / np.array(std)
    note = f"pixels in {name}, mean {_numbers(mean)}, std {_numbers(std)}"
    return factor.astype(np.float32), offset.astype(np.float32), note + ("" if said else " (assumed, ImageNet's)")


def _numbers(values: Sequence[float]) -> str:
    return ",".join(f"{value:g}" for value in values)


def _described(value: Any) -> str:
    import onnx

    tensor = value.type.tensor_type
    dims = ", ".join(str(one.dim_value or one.dim_param or "?") for one in tensor.shape.dim)
    name = onnx.TensorProto.DataType.Name(tensor.elem_type).lower()
    return f"{value.name} ({name} [{dims}])"


def _types() -> dict[str, int]:
    """Numbers of the element types that images come in."""
    from onnx import TensorProto

    return {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "uint8": TensorProto.UINT8}
