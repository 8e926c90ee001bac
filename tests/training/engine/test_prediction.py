"""Answers in parts that memory suffices for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipelines.core.errors import PlatformError
from pipelines.training.augmentation.tta import Views
from pipelines.training.devices import Compute
from pipelines.training.engine.prediction import predict

CPU = Compute(device=torch.device("cpu"))
PIXELS = np.random.default_rng(0).integers(0, 256, (100, 32, 32, 3)).astype(np.uint8)


class _Narrow(nn.Module):
    """Memory for so many images; answers with each one's mean."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most
        self.asked: list[int] = []

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        self.asked.append(len(pixels))
        if len(pixels) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        means = pixels.float().mean((1, 2, 3))[:, None]
        return means, means


def test_parts_are_halved_until_memory_suffices_and_answers_stay() -> None:
    narrow = _Narrow(30)
    found = predict(narrow, PIXELS, CPU)
    assert narrow.asked == [100, 50, 25, 25, 25, 25]
    assert np.array_equal(found, predict(_Narrow(100), PIXELS, CPU))


def test_views_count_as_images() -> None:
    plain, views = _Narrow(10_000), _Narrow(10_000)
    predict(plain, np.repeat(PIXELS, 6, axis=0), CPU)
    predict(Views(views, "mirror_shift"), np.repeat(PIXELS, 6, axis=0), CPU)
    assert max(views.asked) <= max(plain.asked)


def test_memory_for_not_even_one_image_is_said() -> None:
    with pytest.raises(PlatformError, match="single image"):
        predict(_Narrow(0), PIXELS, CPU)
