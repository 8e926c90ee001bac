"""Embeddings of torchvision's networks with weights from a file. Torch and torchvision only."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from pipelines.core.embedding import TORCHVISION_SIDE_PX
from pipelines.training.embedders import TorchvisionFeatures

_BATCH = 64


class TorchvisionEmbedder:
    """The pooled features of a backbone, scaled to unit length. Raises what `TorchvisionFeatures` raises."""

    height = TORCHVISION_SIDE_PX
    width = TORCHVISION_SIDE_PX
    fit = "crop"

    def __init__(self, backbone: str, weights: Path, view: str) -> None:
        torch.set_num_threads(len(os.sched_getaffinity(0)))
        self._network = TorchvisionFeatures(backbone, weights).eval()
        self.view = view
        self.dim = self.embed(np.zeros((1, self.height, self.width, 3), np.uint8)).shape[1]

    def embed(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Unit rows [N, dim] for uint8 [N, 224, 224, 3]."""
        with torch.inference_mode():
            batches = [torch.from_numpy(pixels[start : start + _BATCH]) for start in range(0, len(pixels), _BATCH)]
            rows = [self._network(batch).numpy() for batch in batches]
        return np.concatenate(rows) if rows else np.empty((0, self.dim), np.float32)
