"""A network's answers."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pipelines.core.pixelset import DecodedImages, Pixels
from pipelines.training.devices import Compute

_PIXELS_AT_ONCE = {"cpu": 2**18, "cuda": 2**24}  # 256 images of 32 px; 334 of 224 px
_FEWEST, _MOST = 16, 2048


def predict(
    network: nn.Module,
    pixels_NHWC: DecodedImages | Pixels,  # noqa: N803
    compute: Compute,
    rows: slice = slice(None),
) -> NDArray[np.float32]:
    """Logits float32 [N, num classes] of uint8 [N, H, W, 3], or of some of its rows. Leaves the network in evaluation
    mode."""
    images = pixels_NHWC if isinstance(pixels_NHWC, DecodedImages) else DecodedImages([pixels_NHWC])
    network.eval()
    first, end, _ = rows.indices(len(images))
    at_once = min(_MOST, max(_FEWEST, _PIXELS_AT_ONCE[compute.device.type] // (images.height * images.width)))
    parts = []
    with torch.inference_mode(), compute.autocast():
        for start in range(first, end, at_once):
            chosen = np.arange(start, min(start + at_once, end))
            logits, _ = network(torch.from_numpy(images.rows(chosen)).to(compute.device))
            parts.append(logits.float())
        found: NDArray[np.float32] = torch.cat(parts).cpu().numpy()
        return found
