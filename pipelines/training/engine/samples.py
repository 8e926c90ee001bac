"""Some training images as the network sees them, for a start that fits the data."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pipelines.core.errors import ImageError, UserError
from pipelines.core.pixelset import EncodedImages, Pixels, Split
from pipelines.core.preprocessing import preprocess, spec_of
from pipelines.core.recipe import Preprocessing
from pipelines.training.augmentation.resampling import resample

_MOST_DECODED = 5000
_MOST_ENCODED = 1000  # some seconds to decode


def samples(split: Split, preprocessing: Preprocessing) -> Tensor:
    """uint8 [N, H, W, 3] on the CPU at the model's size: images from all over the split, the same ones every time.

    Raises UserError where none of them decodes.
    """
    most = _MOST_ENCODED if isinstance(split.images, EncodedImages) else _MOST_DECODED
    rows = np.linspace(0, len(split) - 1, min(most, len(split))).astype(np.int64)
    if isinstance(split.images, EncodedImages):
        return _decoded(split.images, rows.tolist(), preprocessing)
    pixels = torch.from_numpy(split.images.rows(rows))
    if pixels.shape[1:3] == (preprocessing.height, preprocessing.width):
        return pixels
    whole = torch.tensor([0, 0, *pixels.shape[1:3]]).expand(len(pixels), 4)
    as_it_is = torch.zeros(len(pixels), dtype=torch.bool)
    return resample(pixels, whole, as_it_is, preprocessing.height, preprocessing.width)


def _decoded(images: EncodedImages, rows: list[int], preprocessing: Preprocessing) -> Tensor:
    found: list[Pixels] = []
    for row in rows:
        try:
            found.append(preprocess(images.data(row), spec_of(preprocessing)))
        except ImageError:  # the loader names it when its turn comes
            continue
    if not found:
        raise UserError(f"none of {len(rows)} training images decodes: their files are damaged; prepare them again")
    return torch.from_numpy(np.stack(found))
