"""Random decisions for a global batch, apart from the pixels they change.

They depend on the generator, the epoch and the rows of the split alone: not on the device, the loading strategy, the
number of processes or the size of training images at the time.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipelines.core.recipe import Augmentation, Preprocessing
from pipelines.training.randomness import seed_of

_CROP_ASPECT = (3 / 4, 4 / 3)
_CROP_TRIES = 10
_ERASED_AREA = (0.02, 0.33)
_ERASED_ASPECT = (0.3, 1 / 0.3)


@dataclass(frozen=True, kw_only=True)
class Draws:
    """What happens to each image, one row an image; CPU tensors."""

    boxes: Tensor
    """float32 [N, 4] top, left, height, width as shares of the image: what crop = 'resized' cuts; else the whole."""
    offsets: Tensor
    """float32 [N, 2] in [0, 1): where in the range of shifts crop = 'shift' moves the image, down and right; 0 is as
    far up and left as allowed, 0.5 stays. `geometry` makes whole pixels of it for the side at hand."""
    mirrored: Tensor
    """bool [N]"""
    erased: Tensor
    """float32 [N, 4] top, left, height, width as shares of the resulting image; height 0 erases nothing."""

    def __len__(self) -> int:
        return len(self.mirrored)

    def part(self, rows: slice) -> Draws:
        """Those of some images, such as a process's part of the global batch."""
        return Draws(**{field.name: getattr(self, field.name)[rows] for field in dataclasses.fields(self)})


def draw(
    rows: Tensor,
    sizes: Tensor,
    epoch: int,
    augmentation: Augmentation,
    preprocessing: Preprocessing,
    generator: torch.Generator,
    seed: int,
) -> Draws:
    """Decisions for the images of a global batch.

    `rows` int64 [N] are rows of the split; `sizes` int32 [N, 2] the heights and widths, px, of the images that
    boxes are shares of; crops are stretched about as `preprocessing` stretches whole images for evaluation.
    `generator` is that of this step (CPU), `seed` the recipe's.
    """
    num_images = len(rows)
    if augmentation.crop == "resized":
        aspects = (sizes[:, 1] / sizes[:, 0])[:, None]
        if preprocessing.fit == "squash":
            wanted = aspects  # evaluation stretches every image by its own aspect: crops keep to that
        else:
            wanted = torch.full_like(aspects, preprocessing.width / preprocessing.height)
        boxes = _crops(aspects, wanted, augmentation.min_area, generator)
        offsets = torch.full((num_images, 2), 0.5)
    else:
        boxes = torch.tensor([0.0, 0.0, 1.0, 1.0]).repeat(num_images, 1)
        offsets = torch.rand(num_images, 2, generator=generator)
    return Draws(
        boxes=boxes,
        offsets=offsets,
        mirrored=_mirrored(rows, epoch, augmentation.flip, generator, seed),
        erased=_erased(num_images, augmentation.erasing, generator),
    )


def _crops(aspects: Tensor, wanted: Tensor, min_area: float, generator: torch.Generator) -> Tensor:
    """Boxes float32 [N, 4] as torchvision's RandomResizedCrop draws them (Szegedy et al. 2015, "Going deeper with
    convolutions"), for outputs that need not be square: area uniform in [min_area, 1], aspect log-uniform about the
    wanted one; the first of ten tries that lies within the image, else the largest centred box of an allowed aspect.

    `aspects` and `wanted` [N, 1] are widths over heights of the images and of what is to be cut. Where the wanted shape
    can take less of an image than a square can, areas are shares of so much less.
    """
    num_images = len(aspects)
    relative = wanted / aspects
    room = (_largest(relative) / _largest(1 / aspects)).clamp(max=1)
    area = _uniform((num_images, _CROP_TRIES), min_area, 1.0, generator) * room
    aspect = _log_uniform((num_images, _CROP_TRIES), _CROP_ASPECT, generator) * relative
    place = torch.rand(num_images, 2, generator=generator)
    tries = torch.stack([(area / aspect).sqrt(), (area * aspect).sqrt()], dim=-1)
    fits = (tries <= 1).all(dim=-1)
    sides = tries[torch.arange(num_images), fits.int().argmax(dim=1)]

    nearest = (1 / relative).clamp(*_CROP_ASPECT) * relative
    largest = torch.cat([1 / nearest, nearest], dim=1).clamp(max=1)
    found = fits.any(dim=1, keepdim=True)
    sides = torch.where(found, sides, largest)
    return torch.cat([torch.where(found, place, 0.5) * (1 - sides), sides], dim=1)


def _largest(relative: Tensor) -> Tensor:
    """Share of an image that the largest box takes whose aspect over the image's own is this."""
    return torch.minimum(relative, 1 / relative)


def _mirrored(rows: Tensor, epoch: int, flip: str, generator: torch.Generator, seed: int) -> Tensor:
    """bool [N]. 'alternating' tosses each row's coin once in a training and turns it over every epoch, so that any two
    epochs in a row show both sides: KellerJordan/cifar10-airbench (MIT licence), arXiv:2404.00498.
    """
    if flip == "none":
        return torch.zeros(len(rows), dtype=torch.bool)
    if flip == "random":
        return torch.rand(len(rows), generator=generator) < 0.5
    return _coins(rows, seed) ^ (epoch % 2 == 1)


def _coins(rows: Tensor, seed: int) -> Tensor:
    """bool [N] that stay with the rows: the top bit of SplitMix64 (Steele et al. 2014) at the place of each row."""
    state = rows.numpy().astype(np.uint64) + np.uint64(1)
    state = state * np.uint64(0x9E3779B97F4A7C15) + np.uint64(seed_of(seed, "flip"))
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return torch.from_numpy((state ^ (state >> np.uint64(31))) >> np.uint64(63) == 1)


def _erased(num_images: int, share: float, generator: torch.Generator) -> Tensor:
    """Rectangles float32 [N, 4] of Zhong et al. 2017, "Random erasing data augmentation" (their areas and aspects, the
    latter relative to the image's own), for a share of the images.
    """
    if not share:
        return torch.zeros(num_images, 4)
    chosen = torch.rand(num_images, 1, generator=generator) < share
    area = _uniform((num_images, 1), *_ERASED_AREA, generator)
    aspect = _log_uniform((num_images, 1), _ERASED_ASPECT, generator)
    sides = torch.cat([(area * aspect).sqrt(), (area / aspect).sqrt()], dim=1).clamp(max=1)
    corner = torch.rand(num_images, 2, generator=generator) * (1 - sides)
    return torch.cat([corner, sides], dim=1) * chosen


def _uniform(shape: tuple[int, int], low: float, high: float, generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(shape, generator=generator)


def _log_uniform(shape: tuple[int, int], bounds: tuple[float, float], generator: torch.Generator) -> Tensor:
    return _uniform(shape, math.log(bounds[0]), math.log(bounds[1]), generator).exp()
