"""A network's answers."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipelines.core.errors import PlatformError
from pipelines.core.pixelset import DecodedImages, Pixels
from pipelines.training.devices import Compute
from pipelines.training.engine.memory import attempt

_PIXELS_AT_ONCE = {"cpu": 2**18, "cuda": 2**24}  # 256 images of 32 px; 334 of 224 px
_FEWEST, _MOST = 16, 2048


def predict(
    network: nn.Module,
    pixels_NHWC: DecodedImages | Pixels,  # noqa: N803
    compute: Compute,
    rows: slice = slice(None),
) -> NDArray[np.float32]:
    """Logits float32 [N, num classes] of uint8 [N, H, W, 3], or of some of its rows. Leaves the network in evaluation
    mode. Raises PlatformError where memory does not suffice for one image.
    """
    images = pixels_NHWC if isinstance(pixels_NHWC, DecodedImages) else DecodedImages([pixels_NHWC])
    network.eval()
    first, end, _ = rows.indices(len(images))
    at_once = min(_MOST, max(_FEWEST, _PIXELS_AT_ONCE[compute.device.type] // (images.height * images.width)))
    at_once = max(1, at_once // getattr(network, "num_views", 1))

    def answered(rows: NDArray[np.int64]) -> Tensor:
        logits: Tensor = network(torch.from_numpy(images.rows(rows)).to(compute.device))[0]
        return logits.float()

    parts: list[Tensor] = []
    start = first
    with torch.inference_mode(), compute.autocast():
        while start < end:
            chosen = np.arange(start, min(start + at_once, end))
            logits = attempt(lambda chosen=chosen: answered(chosen))  # type: ignore[misc]
            if logits is not None:
                parts.append(logits)
                start += len(chosen)
            elif at_once == 1:
                raise PlatformError("out of memory with a single image: set training.device = 'cpu'")
            else:
                at_once = max(1, len(chosen) // 2)
        found: NDArray[np.float32] = torch.cat(parts).cpu().numpy()
        return found
