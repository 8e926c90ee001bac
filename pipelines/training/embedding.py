"""Embeddings of torchvision's networks with weights from a file. Torch and torchvision only."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torchvision

_HEADS = ("fc", "classifier", "heads", "head")
_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)
_BATCH = 64


class TorchvisionEmbedder:
    """The pooled features of a backbone, scaled to unit length.

    `weights` is a state-dict file as torchvision publishes them (loaded without running any code in it). Raises
    ValueError where the backbone is unknown or the weights do not fit it.
    """

    height = 224
    width = 224
    fit = "crop"

    def __init__(self, backbone: str, weights: Path, view: str) -> None:
        if backbone not in torchvision.models.list_models(module=torchvision.models):
            raise ValueError(f"torchvision has no backbone {backbone!r}")
        torch.set_num_threads(len(os.sched_getaffinity(0)))
        network = torchvision.models.get_model(backbone, weights=None)
        head = next(name for name in _HEADS if hasattr(network, name))
        state = torch.load(weights, map_location="cpu", weights_only=True)
        # The file may be for another number of classes: the head is not used.
        body = {key: value for key, value in state.items() if key.split(".")[0] != head}
        try:
            missing, unexpected = network.load_state_dict(body, strict=False)
        except RuntimeError as error:
            raise ValueError(f"{weights}: not the weights of {backbone}: {error}") from error
        wrong = [*(key for key in missing if key.split(".")[0] != head), *unexpected]
        if wrong:
            raise ValueError(f"{weights}: not the weights of {backbone}: {', '.join(wrong[:3])}")
        setattr(network, head, torch.nn.Identity())
        self._network = network.eval()
        self.view = view
        self.dim = self.embed(np.zeros((1, self.height, self.width, 3), np.uint8)).shape[1]

    def embed(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Unit rows [N, dim] for uint8 [N, 224, 224, 3]."""
        mean, std = torch.tensor(_MEAN).view(3, 1, 1), torch.tensor(_STD).view(3, 1, 1)
        rows = []
        with torch.inference_mode():
            for start in range(0, len(pixels), _BATCH):
                batch = torch.from_numpy(pixels[start : start + _BATCH]).permute(0, 3, 1, 2).float() / 255
                found = self._network((batch - mean) / std).flatten(1)
                rows.append(torch.nn.functional.normalize(found, dim=1).numpy())
        return np.concatenate(rows) if rows else np.empty((0, self.dim), np.float32)
