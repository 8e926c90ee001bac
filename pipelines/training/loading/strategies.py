"""Which of the three ways to load suits a split and a device."""

from __future__ import annotations

from pathlib import Path

import torch

from pipelines.core.errors import RecipeError
from pipelines.core.pixelset import DecodedImages, EncodedImages

_RESIDENT_SHARE = 0.5
"""Of the free memory: the rest is for activations, or for other processes."""


def choose(images: DecodedImages | EncodedImages, asked: str, device: torch.device) -> str:
    """'resident', 'mapped' or 'stream'. Raises RecipeError where the images are not stored as `asked` needs them."""
    if isinstance(images, EncodedImages):
        if asked in ("resident", "mapped"):
            raise RecipeError(
                f"loading.strategy = {asked!r}: the training images are stored encoded; prepare them again under this "
                "recipe, or set 'stream' or 'auto'"
            )
        return "stream"
    if asked == "stream":
        raise RecipeError(
            "loading.strategy = 'stream': the training images are stored decoded; prepare them again under this "
            "recipe, or set 'resident', 'mapped' or 'auto'"
        )
    if asked == "mapped":
        return asked
    needed, free = images.num_bytes, _free_bytes(device)
    if asked == "auto":
        return "resident" if needed <= _RESIDENT_SHARE * free else "mapped"
    if needed > free and device.type == "cuda":  # on a CPU they are mapped all the same
        raise RecipeError(
            f"loading.strategy = 'resident': the training images take {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB of "
            "the GPU are free; set 'mapped' or 'auto'"
        )
    return asked


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    lines = Path("/proc/meminfo").read_text().splitlines()
    kilobytes = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    return kilobytes * 1024
