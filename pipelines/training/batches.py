"""How pixels reach the network: in shuffled batches of nearly equal size."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipelines.core.pixelset import Split
from pipelines.core.recipe import Training
from pipelines.training.augmentation import augment

Weights = NDArray[np.float32]
Batch = tuple[Tensor, Tensor, Tensor]
"""Pixels uint8 [N, H, W, 3], labels int64 [N], weights float32 [N]."""


def num_batches(num_images: int, batch_size: int) -> int:
    return -(-num_images // batch_size)


def training_batches(
    split: Split, weights: Weights, training: Training, epoch: int, device: torch.device
) -> Iterator[Batch]:
    """One epoch: every image once, shuffled and augmented. Depends on nothing but seed and epoch."""
    generator = torch.Generator().manual_seed(training.seed * 1_000_003 + epoch)
    order = torch.randperm(len(split), generator=generator).numpy()
    # Nearly equal parts, since batch norm fails on a last batch of one image.
    for rows in np.array_split(order, num_batches(len(split), training.batch_size)):
        pixels = torch.from_numpy(split.pixels[rows])
        labels, weight = torch.from_numpy(split.labels[rows]), torch.from_numpy(weights[rows])
        if device.type == "cuda":
            pixels = pixels.pin_memory()
        pixels = augment(pixels.to(device, non_blocking=True), training, generator)
        yield pixels, labels.to(device), weight.to(device)


def sample_weights(split: Split, num_classes: int, class_balance: bool) -> Weights:
    """float32 [N] with mean 1: the images' own weights, times the inverse size of their class where asked."""
    weights = split.weights.astype(np.float64)
    if class_balance:
        counts = np.bincount(split.labels, minlength=num_classes)
        weights = weights / np.maximum(counts, 1)[split.labels]
    scaled: Weights = (weights / weights.mean()).astype(np.float32)
    return scaled
