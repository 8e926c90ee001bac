"""Photographs as our pixel sets: decoded shards as `prepare` writes them, or the untouched files to be streamed."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bench.photographs import Photograph, Photographs
from pipelines.core import layout, pixelset, preparation
from pipelines.core.layout import Layout
from pipelines.core.pixelset import DecodedImages, EncodedImages, PixelSet, Split
from pipelines.core.preparation import Images
from pipelines.core.preprocessing import decode, preprocess, spec_of
from pipelines.core.recipe import Recipe, from_dict, override
from pipelines.core.storage import LocalStorage


def recipe_for(side: int) -> Recipe:
    """Photographs at `side` px, cut by the rule of torchvision's RandomResizedCrop with its defaults."""
    return from_dict(
        {
            "name": "bench",
            "preprocessing": {"height": side, "width": side},
            "model": {"backbone": "resnet18"},
            "training": {"batch_size": 128, "threads": 1},
            "augmentation": {"crop": "resized", "min_area": 0.08, "flip": "random"},
        }
    )


@dataclass(frozen=True, kw_only=True)
class Converted:
    """Decoded shards of some files, and what they cost."""

    split: Split
    seconds: float
    source_bytes: int
    shard_bytes: int

    def training_images(self) -> DecodedImages:
        return self.split.pixels

    def as_json(self) -> dict[str, Any]:
        return {"seconds": self.seconds, "source_bytes": self.source_bytes, "shard_bytes": self.shard_bytes}

    def text(self) -> str:
        images = self.training_images()
        count = len(images)
        return (
            f"shards: {count:,} images at {images.height} x {images.width} px converted in {self.seconds:.1f} s "
            f"({count / self.seconds:,.0f} images/s), {self.shard_bytes / 1e6:,.0f} MB for "
            f"{self.source_bytes / 1e6:,.0f} MB of files"
        )


def convert(found: Photographs, recipe: Recipe, folder: Path) -> Converted:
    """All files as one training split of decoded shards, by the very code of step `prepare`."""
    folder.mkdir(parents=True)
    files = found.files
    decoded = override(recipe, {"loading.strategy": "mapped"})
    began = time.perf_counter()
    _write(found, {"train": files}, {"train": layout.training(decoded, len(files))}, folder)
    seconds = time.perf_counter() - began
    pixelset.write_index(
        folder,
        class_names=found.class_names,
        preprocessing=spec_of(recipe.preprocessing).to_json(),
        splits={"train": len(files)},
    )
    return Converted(
        split=pixelset.load(folder).splits["train"],
        seconds=seconds,
        source_bytes=sum(one.path.stat().st_size for one in files),
        shard_bytes=sum(one.stat().st_size for one in folder.glob("train-pixels-*.npy")),
    )


def _write(
    found: Photographs, splits: Mapping[str, Sequence[Photograph]], layouts: dict[str, Layout], folder: Path
) -> None:
    images = {
        split: Images(
            keys=[one.path.relative_to(found.folder).as_posix() for one in files],
            ids=[one.path.relative_to(found.folder).as_posix() for one in files],
            labels=[one.label for one in files],
            weights=[1.0] * len(files),
        )
        for split, files in splits.items()
    }
    preparation.write(images, layouts, partial(LocalStorage, found.folder), folder, "take it out of the folder")


def encode(found: Photographs) -> Split:
    """All files as one training split of untouched bytes, to be streamed."""
    data = [one.path.read_bytes() for one in found.files]
    ends = np.cumsum([len(one) for one in data])
    spans = np.stack([np.zeros(len(data), np.int64), ends - [len(one) for one in data], ends], axis=1)
    opened = [decode(one) for one in data]
    sizes = np.array([(one.height, one.width) for one in opened], np.int32)
    with tempfile.TemporaryDirectory() as folder:
        shard = Path(folder, "images.bin")
        shard.write_bytes(b"".join(data))
        images = EncodedImages([shard], spans, sizes)  # keeps it open
    return Split(
        images=images,
        labels=np.array([one.label for one in found.files], np.int64),
        weights=np.ones(len(data), np.float32),
        ids=[str(one.path) for one in found.files],
    )


def decode_all(found: Photographs, recipe: Recipe) -> PixelSet:
    """Every split in memory at the model's size: for small images, where there is torch and nothing else."""
    spec = spec_of(recipe.preprocessing)
    splits = {}
    for name in ("train", "val", "test"):
        files = found.of(name)
        if not files:
            continue
        splits[name] = Split(
            images=DecodedImages([np.stack([preprocess(one.path.read_bytes(), spec) for one in files])]),
            labels=np.array([one.label for one in files], np.int64),
            weights=np.ones(len(files), np.float32),
            ids=[str(one.path) for one in files],
        )
    return PixelSet(class_names=found.class_names, preprocessing=spec.to_json(), splits=splits)
