"""Embeddings as torch modules: the numbers that are stored, in eager mode and in an exported graph."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
import torchvision
from PIL import Image
from sklearn.datasets import load_digits, load_sample_image
from torch import nn

from pipelines.core.embedding import HogColorV1
from pipelines.core.errors import UserError
from pipelines.training.embedders import HogColor, build
from pipelines.training.embedding import TorchvisionEmbedder


def _random() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (300, 32, 32, 3), dtype=np.uint8)


def _flat() -> np.ndarray:
    return np.tile(np.arange(256, dtype=np.uint8)[:, None, None, None], (1, 32, 32, 3))


def _diagonals() -> np.ndarray:
    """Edges of exactly 45 degrees: there some orientations' sums are zero but for rounding, and roots magnify that."""
    step = np.arange(32)
    planes = [((step[:, None] + sign * step[None, :]) % period < period // 2) for sign in (1, -1) for period in (4, 8)]
    return np.stack([np.stack([plane * 201, plane * 77, ~plane * 9], axis=2).astype(np.uint8) for plane in planes])


def _digits() -> np.ndarray:
    grey = load_digits().images[:300] * 15
    return np.kron(grey, np.ones((1, 4, 4)))[..., None].repeat(3, axis=3).astype(np.uint8)


def _photographs() -> np.ndarray:
    images = [Image.fromarray(load_sample_image(name)) for name in ("china.jpg", "flower.jpg")]
    boxes = [(left, top, left + 200, top + 160) for left in range(0, 400, 80) for top in range(0, 240, 80)]
    return np.stack([np.asarray(image.crop(box).resize((32, 32))) for image in images for box in boxes])


def _session(module: nn.Module, side: int) -> onnxruntime.InferenceSession:
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        example = (torch.zeros((2, side, side, 3), dtype=torch.uint8),)
        names = {"input_names": ["pixels"], "output_names": ["rows"]}
        axes = {"pixels": {0: "N"}, "rows": {0: "N"}}
        torch.onnx.export(module, example, file, dynamic_axes=axes, opset_version=18, dynamo=False, **names)
    return onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("images", [_random, _flat, _diagonals, _digits, _photographs])
def test_hog_color_is_the_stored_embedding(images: object) -> None:
    pixels = images()  # type: ignore[operator]
    stored = HogColorV1().embed(pixels)
    with torch.inference_mode():
        np.testing.assert_allclose(HogColor()(torch.from_numpy(pixels)).numpy(), stored, atol=1e-5, rtol=0)
    session = _session(HogColor().eval(), 32)
    for batch in (slice(None), slice(0, 1)):
        (found,) = session.run(None, {"pixels": pixels[batch]})
        np.testing.assert_allclose(found, stored[batch], atol=1e-5, rtol=0)


def test_a_backbone_is_the_stored_embedding_and_comes_back_without_its_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    path = tmp_path / "weights.pth"
    torch.save(torchvision.models.mobilenet_v3_small(num_classes=7).state_dict(), path)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 224, 224, 3), dtype=np.uint8)
    stored = TorchvisionEmbedder("mobilenet_v3_small", path, "view").embed(pixels)
    name = f"torchvision:mobilenet_v3_small:{path}"
    first = build(name)
    path.unlink()
    second = build(name, weights=False)
    second.load_state_dict(first.state_dict())
    for module in (first, second):
        (found,) = _session(module, 224).run(None, {"pixels": pixels})
        np.testing.assert_allclose(found, stored, atol=1e-5, rtol=0)


def test_weights_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    (tmp_path / "bad.pth").write_bytes(b"not a state dict")
    with pytest.raises(UserError, match=r"features\.embedding.*bad\.pth"):
        build(f"torchvision:resnet18:{tmp_path / 'bad.pth'}")
