"""What flows from the loader to the network."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Batch:
    """This process's part of one optimizer step, on the device."""

    pixels: Tensor
    """uint8 [N, H, W, 3], augmented; H and W are smaller while augmentation.start_size grows."""
    labels: Tensor
    """int64 [N]"""
    weights: Tensor
    """float32 [N], mean 1 over the training split."""
    num_global: int
    """Images of this step in all processes; the loss is the sum over them divided by this."""
    other_labels: Tensor | None = None
    """int64 [N]: the class that mixup or cutmix mixed in."""
    other_share: Tensor | None = None
    """float32 [N] in 0..1: how much of it."""

    def __len__(self) -> int:
        return len(self.labels)
