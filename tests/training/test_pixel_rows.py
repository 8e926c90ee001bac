"""Normalization by rows: the bits of the plain arithmetic, and rows as constants in what is exported."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
import torchvision

from pipelines.core.foreign import ForeignModel
from pipelines.core.preprocessing import spec_of
from pipelines.core.recipe import from_dict
from pipelines.training import networks
from pipelines.training.augmentation.tta import Views
from pipelines.training.export import export_onnx
from pipelines.training.foreign import TorchvisionNetwork
from pipelines.training.pixel_rows import by_rows, standardized

MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


def random_pixels(height: int = 12, width: int = 20) -> torch.Tensor:
    return torch.randint(0, 256, (5, height, width, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_what_is_traced_computes_the_same_bits() -> None:
    pixels, mean, scale = random_pixels(), torch.rand(1, 3, 1, 1) * 255, torch.rand(1, 3, 1, 1)

    def normalized(given: torch.Tensor) -> torch.Tensor:
        return by_rows(given, lambda values, each: (values - each(mean)) * each(scale))

    expected = (pixels.permute(0, 3, 1, 2).float() - mean) * scale
    traced = torch.jit.trace(normalized, (pixels,))
    for found in (normalized(pixels), traced(pixels), traced(pixels[:2])):
        assert torch.equal(found, expected[: len(found)])
        assert found.is_contiguous(memory_format=torch.channels_last)


def test_standardized_is_torchvisions_to_the_last_bit() -> None:
    pixels = random_pixels()
    transform = torchvision.transforms.Compose(
        [torchvision.transforms.ToTensor(), torchvision.transforms.Normalize(MEAN.tolist(), STD.tolist())]
    )
    expected = torch.stack([transform(image.numpy()) for image in pixels])
    assert torch.equal(standardized(pixels, MEAN, STD), expected)


@pytest.mark.parametrize("tta", ["none", "mirror_shift"])
def test_an_exported_network_has_rows_as_constants(tta: str, tmp_path: Path) -> None:
    recipe = from_dict({"name": "tiny", "model": {"backbone": "small"}, "preprocessing": {"height": 12, "width": 20}})
    path = tmp_path / "model.onnx"
    export_onnx(Views(networks.build(recipe.model, 3), tta).eval(), 1.0, spec_of(recipe.preprocessing), path)
    assert first_operands(path, "Sub", "Mul") == [(20, 3), (20, 3)]


def test_an_imported_one_too(tmp_path: Path) -> None:
    torch.save(torchvision.models.squeezenet1_1(num_classes=1000).state_dict(), tmp_path / "weights.pth")
    model = ForeignModel(form="torchvision", file=str(tmp_path / "weights.pth"), architecture="squeezenet1_1", size=64)
    TorchvisionNetwork(model).write(1.0, tmp_path / "model.onnx")
    assert first_operands(tmp_path / "model.onnx", "Sub", "Div") == [(64, 3), (64, 3)]


def first_operands(path: Path, *operators: str) -> list[tuple[int, ...]]:
    """Shapes of the constants of such nodes before the first convolution, as ONNX Runtime folds them at the start."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(path.with_suffix(".folded"))
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    graph = onnx.load(options.optimized_model_filepath).graph
    shapes = {one.name: tuple(one.dims) for one in graph.initializer}
    nodes = list(graph.node)
    before = nodes[: next(place for place, node in enumerate(nodes) if node.op_type == "Conv")]
    return [shapes[node.input[1]] for node in before if node.op_type in operators and len(shapes[node.input[1]])]
