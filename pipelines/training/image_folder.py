"""A class-per-folder directory as a pixel set, for training by hand on a machine that has torch and nothing else."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from pipelines.core.errors import ImageError, SourceError
from pipelines.core.pixelset import PixelSet, Split
from pipelines.core.preprocessing import preprocess, spec_of
from pipelines.core.recipe import Recipe

_SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val"}


def read(folder: Path, recipe: Recipe) -> PixelSet:
    """Decode DIR/<class>/<images> or DIR/{train,val}/<class>/<images>.

    Without folders of splits, an image validates if the hash of its bytes says so (recipe.split.val_share). Raises
    SourceError naming the file that is no image.
    """
    below = sorted(one for one in folder.iterdir() if one.is_dir()) if folder.is_dir() else []
    has_splits = bool(below) and all(one.name in {*_SPLITS, "test"} for one in below)
    roots = {_SPLITS[one.name]: one for one in below if one.name in _SPLITS} if has_splits else {"": folder}
    class_names = sorted({one.name for root in roots.values() for one in root.glob("*/")})
    if len(class_names) < 2:
        raise SourceError(f"{folder}: expected pixelset.json, or at least two folders of images named by their class")
    rows: dict[str, list[tuple[np.ndarray, int, str]]] = {"train": [], "val": []}
    spec = spec_of(recipe.preprocessing)
    for split, root in roots.items():
        for label, name in enumerate(class_names):
            for path in sorted(one for one in (root / name).rglob("*") if one.is_file()):
                data = path.read_bytes()
                image_id = hashlib.sha256(data).hexdigest()
                try:
                    pixels = preprocess(data, spec)
                except ImageError as error:
                    raise SourceError(f"{path}: {error.detail}; take it out of the folder") from error
                rows[split or _split_of(image_id, recipe)].append((pixels, label, image_id))
    return PixelSet(
        class_names=tuple(class_names),
        preprocessing=spec.to_json(),
        splits={split: _stacked(found) for split, found in rows.items() if found},
    )


def _split_of(image_id: str, recipe: Recipe) -> str:
    drawn = hashlib.sha256(f"{recipe.split.salt}\0{image_id}".encode()).digest()
    return "val" if int.from_bytes(drawn[:8]) / 2**64 < recipe.split.val_share else "train"


def _stacked(rows: list[tuple[np.ndarray, int, str]]) -> Split:
    return Split(
        pixels=np.stack([pixels for pixels, _, _ in rows]),
        labels=np.array([label for _, label, _ in rows], np.int64),
        weights=np.ones(len(rows), np.float32),
        ids=tuple(image_id for _, _, image_id in rows),
    )
