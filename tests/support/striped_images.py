"""Images that a small net learns in seconds, as stored blobs and a training set."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pipelines.core.datasets import blob_key
from pipelines.core.storage import LocalStorage

CLASS_NAMES = ("across", "along", "checked")
SIDE = 8


def striped(label: int, seed: int) -> bytes:
    """A noisy PNG of horizontal stripes, vertical ones, or a chessboard."""
    stripe = np.arange(SIDE) % 4 < 2
    patterns = (stripe[:, None] | np.zeros(SIDE, bool), stripe[None, :] | np.zeros((SIDE, 1), bool))
    pattern = (*patterns, patterns[0] ^ patterns[1])[label]
    noise = np.random.default_rng(seed).integers(-30, 31, (SIDE, SIDE, 3))
    pixels = np.where(pattern[..., None], 200, 50) + noise
    file = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


def write_training_set(folder: Path, counts: dict[str, int]) -> tuple[LocalStorage, Path]:
    """Blobs in a storage below `folder`, and the training set (images of each split in `counts`) that names them."""
    storage = LocalStorage(folder / "store")
    rows: list[dict[str, Any]] = []
    seeds = iter(range(1_000_000))
    for split, count in counts.items():
        for number in range(count):
            data = striped(number % 3, next(seeds))
            image_id = hashlib.sha256(data).hexdigest()
            storage.write(blob_key(image_id), data)
            rows.append({"image_id": image_id, "label": CLASS_NAMES[number % 3], "split": split, "weight": 1.0})
    path = folder / "training_set.parquet"
    pq.write_table(pa.Table.from_pylist(sorted(rows, key=lambda row: row["image_id"])), path)
    return storage, path
