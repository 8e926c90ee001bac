"""Labelled image files to measure with: a folder or tar of class folders, with or without splits above them."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from pipelines.core.archives import unpack
from pipelines.core.errors import SourceError

_SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif"}


@dataclass(frozen=True, kw_only=True)
class Photograph:
    path: Path
    label: int
    split: str
    """train, val or test."""


@dataclass(frozen=True, kw_only=True)
class Photographs:
    folder: Path
    class_names: tuple[str, ...]
    files: Sequence[Photograph]

    def of(self, split: str) -> list[Photograph]:
        return [one for one in self.files if one.split == split]

    def counts(self) -> dict[str, int]:
        return {split: len(self.of(split)) for split in ("train", "val", "test")}

    def resplit(self, val_share: float) -> Photographs:
        """Training and validation images dealt anew by the digest of their names; 0 keeps the splits."""
        if not val_share:
            return self
        files = [replace(one, split="val" if _draw(one) < val_share else "train") for one in self.files]
        return replace(self, files=files)

    def limited(self, most: int) -> Photographs:
        """So many files, taken evenly, so that every class and split keeps its share; all where there are fewer, or for
        0.
        """
        count = len(self.files)
        if not most or count <= most:
            return self
        return replace(self, files=[self.files[number * count // most] for number in range(most)])


def _draw(one: Photograph) -> float:
    return int.from_bytes(hashlib.sha256(one.path.name.encode()).digest()[:4]) / 2**32


def find(data: str, work: Path) -> Photographs:
    """The images of a folder or tar; a tar is unpacked below `work`. Without splits one in seven validates.

    Raises SourceError where there is nothing to measure with.
    """
    path = Path(data).expanduser()
    if not data or not path.exists():
        raise SourceError(f"DATA={data}: no such folder or tar; name one with a folder of images per class")
    folder = path if path.is_dir() else _unpacked(path, work / "unpacked")
    above = sorted(one for one in folder.iterdir() if one.is_dir())
    if len(above) == 1 and not any(one.is_file() for one in folder.iterdir()) and above[0].name not in _SPLITS:
        folder, above = above[0], sorted(one for one in above[0].iterdir() if one.is_dir())
    has_splits = bool(above) and all(one.name in _SPLITS for one in above)
    roots = {_SPLITS[one.name]: one for one in above} if has_splits else {"": folder}
    class_names = tuple(sorted({one.name for root in roots.values() for one in root.iterdir() if one.is_dir()}))
    if len(class_names) < 2:
        raise SourceError(f"{data}: expected at least two folders of images named by their class")
    files = [
        Photograph(path=found, label=label, split=split or ("val" if number % 7 == 6 else "train"))
        for split, root in sorted(roots.items())
        for label, name in enumerate(class_names)
        for number, found in enumerate(sorted((root / name).rglob("*")))
        if found.suffix.lower() in _SUFFIXES
    ]
    return _with_val(Photographs(folder=folder, class_names=class_names, files=files))


def _with_val(found: Photographs) -> Photographs:
    """One in seven training images validates where the data bring no validation images."""
    if found.of("val") or not found.of("train"):
        return found
    files = [
        replace(one, split="val") if one.split == "train" and number % 7 == 6 else one
        for number, one in enumerate(found.files)
    ]
    return replace(found, files=files)


def _unpacked(path: Path, folder: Path) -> Path:
    if not folder.is_dir():
        partial = folder.with_name("unpacking")
        unpack(path, partial)
        partial.replace(folder)
    return folder


def arrange(found: Photographs, folder: Path) -> Path:
    """Links as DIR/{train,val,test}/<class>/<image>: the layout that both sides of a comparison read."""
    for one in found.files:
        link = folder / one.split / found.class_names[one.label] / one.path.name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(one.path.resolve())
    return folder


def find_or_make(data: str, work: Path, *, count: int, side: int) -> Photographs:
    """The data where they are given; generated ones where any will do."""
    return find(data, work) if data else generate(work / "made", count=count, width=side, height=side)


def generate(folder: Path, *, count: int, width: int, height: int, num_classes: int = 4) -> Photographs:
    """JPEGs that are as hard to decode as photographs and can be told apart by their tint: smooth shapes with grain."""
    chance = np.random.default_rng(0)
    tints = chance.integers(40, 216, (num_classes, 3))
    for number in range(count):
        label = number % num_classes
        coarse = Image.fromarray(chance.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(np.float64)
        grain = chance.integers(-12, 13, (height, width, 1))
        file = io.BytesIO()
        pixels = np.clip(0.6 * smooth + 0.4 * tints[label] + grain, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(file, "JPEG", quality=85)
        split = "val" if number // num_classes % 5 == 4 else "train"
        path = folder / split / f"class-{label}" / f"{number:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file.getvalue())
    return find(str(folder), folder)
