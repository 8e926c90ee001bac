"""Smooth pictures of several sizes as JPEGs, told apart by their mean colour."""

from __future__ import annotations

import hashlib
import io
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pipelines.core import layout, pixelset, preparation
from pipelines.core.datasets import blob_key
from pipelines.core.pixelset import PixelSet
from pipelines.core.preparation import Images
from pipelines.core.recipe import Recipe
from pipelines.core.storage import LocalStorage

SIZES = ((40, 50), (64, 48), (33, 91))


def photograph(number: int, size: tuple[int, int] | None = None, orientation: int = 1, quality: int = 95) -> bytes:
    """A JPEG of a gradient and a bright corner, in a colour of its own; `size` is height and width, px."""
    height, width = size or SIZES[number % len(SIZES)]
    colour = np.random.default_rng(number).integers(40, 200, 3)
    rows, columns = np.mgrid[0:height, 0:width]
    waves = 30 * np.sin(rows / height * 3)[..., None] + 25 * np.cos(columns / width * 5)[..., None]
    pixels = colour + waves
    pixels[: height // 3, : width // 3] += 40
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    picture = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    picture.save(file, "JPEG", quality=quality, **({"exif": exif} if orientation != 1 else {}))
    return file.getvalue()


def texture(number: int, side: int = 160) -> bytes:
    """A JPEG of noise whose amplitudes fall with frequency as those of photographs do."""
    random = np.random.default_rng(number)
    down, right = np.fft.fftfreq(side)[:, None, None], np.fft.fftfreq(side)[None, :, None]
    spectrum = np.fft.fft2(random.normal(size=(side, side, 3)), axes=(0, 1)) / np.hypot(down, right).clip(1 / side)
    noise = np.fft.ifft2(spectrum, axes=(0, 1)).real
    file = io.BytesIO()
    picture = 128 + 40 * (noise - noise.mean()) / noise.std()
    Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=95)
    return file.getvalue()


def write_training_set(folder: Path, counts: dict[str, int]) -> tuple[LocalStorage, Path]:
    """Blobs in a storage below `folder`, and the training set (images of each split in `counts`) that names them."""
    storage = LocalStorage(folder / "store")
    rows: list[dict[str, Any]] = []
    for split, count in counts.items():
        for _ in range(count):
            data = photograph(len(rows))
            image_id = hashlib.sha256(data).hexdigest()
            storage.write(blob_key(image_id), data)
            rows.append({"image_id": image_id, "label": f"class-{len(rows) % 3}", "split": split, "weight": 1.0})
    path = folder / "training_set.parquet"
    pq.write_table(pa.Table.from_pylist(sorted(rows, key=lambda row: row["image_id"])), path)
    return storage, path


def write_pixel_set(folder: Path, recipe: Recipe, photographs: list[bytes]) -> PixelSet:
    """A folder named by the strategy: all of them as training images, each with its row as its label."""
    storage = LocalStorage(folder / "files")
    for number, data in enumerate(photographs):
        storage.write(_key(number), data)
    out = folder / recipe.loading.strategy
    out.mkdir()
    splits = {"train": _images(range(len(photographs))), "val": _images(range(0))}
    layouts = {"train": layout.training(recipe, len(photographs)), "val": layout.evaluation(recipe)}
    preparation.write(splits, layouts, partial(LocalStorage, storage.root), out, "mend it")
    names = [str(number) for number in range(len(photographs))]
    counts = {name: len(images) for name, images in splits.items()}
    pixelset.write_index(out, class_names=names, preprocessing=layouts["val"].spec.to_json(), splits=counts)
    return pixelset.load(out)


def _images(numbers: range) -> Images:
    return Images(
        keys=[_key(number) for number in numbers],
        ids=[f"{number:04d}" for number in numbers],
        labels=list(numbers),
        weights=[1.0] * len(numbers),
    )


def _key(number: int) -> str:
    return f"blobs/{number:04d}"
