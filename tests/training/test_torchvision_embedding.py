"""Embeddings of torchvision's networks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision

from pipelines.training.embedding import TorchvisionEmbedder


def test_pooled_features_of_weights_from_a_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    path = tmp_path / "weights.pth"
    torch.save(torchvision.models.mobilenet_v3_small(num_classes=7).state_dict(), path)
    embedder = TorchvisionEmbedder("mobilenet_v3_small", path, "image_embedding_torchvision_x")
    pixels = np.random.default_rng(0).integers(0, 256, (3, 224, 224, 3), dtype=np.uint8)
    rows = embedder.embed(pixels)
    assert rows.shape == (3, embedder.dim)
    assert rows.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(embedder.embed(pixels[1:2])[0], rows[1], atol=1e-5)
    assert embedder.embed(pixels[:0]).shape == (0, embedder.dim)


def test_weights_of_another_network_are_named(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(torchvision.models.mobilenet_v3_small().state_dict(), path)
    with pytest.raises(ValueError, match=r"weights\.pth: not the weights of resnet18"):
        TorchvisionEmbedder("resnet18", path, "view")
    with pytest.raises(ValueError, match="no backbone 'resnet19'"):
        TorchvisionEmbedder("resnet19", path, "view")
