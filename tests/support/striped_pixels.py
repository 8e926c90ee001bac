"""Pixel sets that a tiny net learns in a second: two classes that differ in the direction of their stripes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pipelines.core import pixelset
from pipelines.core.pixelset import DecodedImages, PixelSet, Split
from pipelines.core.recipe import Recipe, from_dict

CLASS_NAMES = ("across", "along")


def stripes(num_images: int, seed: int, side: int = 8) -> Split:
    random = np.random.default_rng(seed)
    labels = np.arange(num_images) % 2
    stripe = np.where(np.arange(side) % 4 < 2, 200, 40)
    plain = np.where(labels[:, None, None] == 0, stripe[None, :, None], stripe[None, None, :])
    noisy = plain[..., None] + random.integers(-30, 30, (num_images, side, side, 3))
    return Split(
        images=DecodedImages([noisy.astype(np.uint8)]),
        labels=labels.astype(np.int64),
        weights=np.ones(num_images, np.float32),
        ids=tuple(f"{seed}-{number:04d}" for number in range(num_images)),
    )


def striped(num_train: int = 64, num_val: int = 32, side: int = 8) -> PixelSet:
    splits = {"train": stripes(num_train, 1, side), "val": stripes(num_val, 2, side)}
    return PixelSet(class_names=CLASS_NAMES, preprocessing={"height": side, "width": side}, splits=splits)


def written(folder: Path, data: PixelSet) -> Path:
    """The pixel set as a folder."""
    folder.mkdir()
    for name, split in data.splits.items():
        np.save(folder / f"{name}-pixels-00000.npy", split.pixels.rows(np.arange(len(split))))
        pixelset.write_split(
            folder, name, labels=split.labels.tolist(), weights=split.weights.tolist(), ids=list(split.ids)
        )
    counts = {name: len(split) for name, split in data.splits.items()}
    pixelset.write_index(folder, class_names=data.class_names, preprocessing=data.preprocessing, splits=counts)
    return folder


def recipe(side: int = 8, **sections: dict[str, object]) -> Recipe:
    """For these images: tiny, on one thread; the sections given are laid over it."""
    table: dict[str, dict[str, object]] = {
        "preprocessing": {"height": side, "width": side},
        "model": {"embedding_dim": 8, "width": 0.25},
        "training": {"epochs": 3, "batch_size": 16, "threads": 1, "device": "cpu", "patience": 0},
        "augmentation": {"flip": "none", "shift_share": 0.0},
    }
    for name, keys in sections.items():
        table[name] = {**table.get(name, {}), **keys}
    return from_dict({"name": "stripes", **table})
