"""Preprocessed images on disk as plain NumPy arrays: what training reads. Only NumPy is needed.

<split>-pixels.npy    uint8 [N, H, W, 3]
<split>-labels.npy    int64 [N]
<split>-weights.npy   float32 [N]
<split>-ids.txt       N lines
pixelset.json         class names, preprocessing spec, images per split; written last
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.core.errors import IntegrityError, SourceError

INDEX = "pixelset.json"
Pixels = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Split:
    """One split; `pixels` is a memory map where it comes from disk."""

    pixels: Pixels
    labels: NDArray[np.int64]
    weights: NDArray[np.float32]
    ids: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, kw_only=True)
class PixelSet:
    class_names: tuple[str, ...]
    preprocessing: Mapping[str, Any]
    """The spec's JSON."""
    splits: Mapping[str, Split]


def pixels_path(folder: Path, split: str) -> Path:
    return folder / f"{split}-pixels.npy"


def create_pixels(folder: Path, split: str, num_images: int, height: int, width: int) -> None:
    """Lay out an empty pixel file; fill it with `open_pixels`."""
    array = np.lib.format.open_memmap(
        pixels_path(folder, split), mode="w+", dtype=np.uint8, shape=(num_images, height, width, 3)
    )
    array.flush()


def open_pixels(folder: Path, split: str) -> Pixels:
    """The split's pixel file, writable in place. Several processes may fill rows of their own."""
    array: Pixels = np.load(pixels_path(folder, split), mmap_mode="r+", allow_pickle=False)
    return array


def write_split(
    folder: Path, split: str, *, labels: Sequence[int], weights: Sequence[float], ids: Sequence[str]
) -> None:
    """Everything of a split but its pixels."""
    np.save(folder / f"{split}-labels.npy", np.asarray(labels, np.int64))
    np.save(folder / f"{split}-weights.npy", np.asarray(weights, np.float32))
    (folder / f"{split}-ids.txt").write_text("".join(f"{one}\n" for one in ids), "utf-8")


def write_index(
    folder: Path, *, class_names: Sequence[str], preprocessing: Mapping[str, Any], splits: Mapping[str, int]
) -> None:
    table = {"class_names": list(class_names), "preprocessing": dict(preprocessing), "splits": dict(splits)}
    (folder / INDEX).write_text(json.dumps(table, indent=1, sort_keys=True, ensure_ascii=False) + "\n", "utf-8")


def load(folder: Path) -> PixelSet:
    """Raises SourceError where the folder is no pixel set, IntegrityError where its arrays do not fit together."""
    try:
        table = json.loads((folder / INDEX).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise SourceError(f"{folder / INDEX}: not a pixel set ({error})") from error
    return PixelSet(
        class_names=tuple(table["class_names"]),
        preprocessing=table["preprocessing"],
        splits={split: _load_split(folder, split, num_images) for split, num_images in table["splits"].items()},
    )


def _load_split(folder: Path, split: str, num_images: int) -> Split:
    # Copy-on-write: torch warns about arrays that it could not write to.
    pixels = np.load(pixels_path(folder, split), mmap_mode="c" if num_images else None, allow_pickle=False)
    found = Split(
        pixels=pixels,
        labels=np.load(folder / f"{split}-labels.npy", allow_pickle=False),
        weights=np.load(folder / f"{split}-weights.npy", allow_pickle=False),
        ids=tuple((folder / f"{split}-ids.txt").read_text("utf-8").splitlines()),
    )
    lengths = {len(found.pixels), len(found.labels), len(found.weights), len(found.ids)}
    if lengths != {num_images} or found.pixels.dtype != np.uint8 or found.pixels.ndim != 4:
        raise IntegrityError(f"{pixels_path(folder, split)}: {sorted(lengths)} rows where {INDEX} says {num_images}")
    return found
