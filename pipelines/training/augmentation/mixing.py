"""Mixup and cutmix: two images of a batch in one, and both of their classes in the loss."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor

from pipelines.core.recipe import Augmentation
from pipelines.training.batch import Batch

_STEPS = 128
"""Mixup's share comes in 128ths: a difference of two uint8 times 128 still fits int16, which halves the traffic."""


def mixes(augmentation: Augmentation) -> bool:
    """Whether images find partners at all."""
    return augmentation.mixup > 0 or augmentation.cutmix > 0


def mix(batch: Batch, augmentation: Augmentation, generator: torch.Generator) -> Batch:
    """The batch with every image mixed with its neighbour; itself where neither mixup nor cutmix is on.

    With both on, a coin chooses for the batch. One share holds for all its images. `generator` (CPU) is that of this
    step, the same in every process. Neighbours are a pair of strangers, for a batch is shuffled, and processes that are
    cut between pairs (`order.part_of_pairs`) mix what one process would. timm pairs within the batch, too.

    The loss of an image is to be (1 - other_share) * its class's loss + other_share * that of other_labels, all times
    weights. Weights and shares are set such that each class's loss has the weight of the image it came from.
    """
    alpha = _alpha(augmentation, generator)
    if not alpha or len(batch) < 2:
        return batch
    share = _beta(alpha[1], generator)
    partners = _partners(len(batch)).to(batch.pixels.device, non_blocking=True)
    if alpha[0] == "mixup":
        pixels, share = blended(batch.pixels, batch.pixels[partners], share)
    else:
        place = torch.rand(2, generator=generator).tolist()
        pixels, share = pasted(batch.pixels, partners, share, (place[0], place[1]))
    own, other = batch.weights * (1 - share), batch.weights[partners] * share
    weights = own + other
    return dataclasses.replace(
        batch,
        pixels=pixels,
        weights=weights,
        other_labels=batch.labels[partners],
        other_share=other / weights.clamp(min=torch.finfo(weights.dtype).tiny),
    )


def _partners(num_images: int) -> Tensor:
    """int64 [N]: the other one of each pair; the last three form a ring where one would be left over."""
    partners = torch.arange(num_images) ^ 1
    if num_images % 2:
        partners[-3:] = torch.tensor([num_images - 2, num_images - 1, num_images - 3])
    return partners


def _alpha(augmentation: Augmentation, generator: torch.Generator) -> tuple[str, float] | None:
    """What this batch undergoes."""
    on = [(name, alpha) for name in ("mixup", "cutmix") if (alpha := getattr(augmentation, name)) > 0]
    if len(on) < 2:
        return on[0] if on else None
    return on[int(torch.randint(2, (), generator=generator))]


def _beta(alpha: float, generator: torch.Generator) -> float:
    """A share from Beta(alpha, alpha)."""
    seed = int(torch.randint(2**62, (), generator=generator))
    return float(np.random.default_rng(seed).beta(alpha, alpha))


def blended(pixels: Tensor, others: Tensor, share: float) -> tuple[Tensor, float]:
    """Mixup (Zhang et al. 2018, arXiv:1710.09412): uint8 [N, H, W, 3], rounded, and the true share of `others`."""
    steps = round(share * _STEPS)
    difference = others.to(torch.int16).sub_(pixels).mul_(steps).add_(_STEPS // 2).bitwise_right_shift_(7)
    return difference.add_(pixels).to(torch.uint8), steps / _STEPS


def pasted(pixels: Tensor, partners: Tensor, share: float, place: tuple[float, float]) -> tuple[Tensor, float]:
    """Cutmix (Yun et al. 2019, arXiv:1905.04899) of uint8 [N, H, W, 3]: one rectangle of each image's partner.

    Its sides are sqrt(share) of the image's and its centre is at `place` (shares of the image); what lies outside is
    cut off, and the share of its true area is returned.
    """
    edges = []
    for side, centre in zip(pixels.shape[1:3], place, strict=True):
        length, middle = round(side * share**0.5), int(side * centre)
        edges.append((max(0, middle - length // 2), min(side, middle - length // 2 + length)))
    (top, bottom), (left, right) = edges
    mixed = pixels.clone()
    mixed[:, top:bottom, left:right] = pixels[:, top:bottom, left:right][partners]
    return mixed, (bottom - top) * (right - left) / (pixels.shape[1] * pixels.shape[2])
