"""A class-per-folder directory as a pixel set, for training by hand on a machine that has torch and nothing else."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pipelines.core import layout, pixelset, preparation
from pipelines.core.cores import num_cores
from pipelines.core.errors import DarkroomError, SourceError
from pipelines.core.pixelset import PixelSet
from pipelines.core.preparation import Images
from pipelines.core.preprocessing import spec_of
from pipelines.core.recipe import Recipe, digest_of
from pipelines.core.storage.local import LocalStorage

_SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val"}
_SEAL = "made-of"


@dataclass(frozen=True, kw_only=True)
class _File:
    split: str
    """Empty where the hash is to say."""
    label: int
    path: Path


def read(folder: Path, recipe: Recipe, out: Path) -> PixelSet:
    """The pixel set of DIR/<class>/<images> or DIR/{train,val}/<class>/<images>, written to `out` the first time.

    It is taken up again as long as files, recipe and decoding libraries are the same. Without a folder val/, an image
    validates if the hash of its bytes says so (recipe.split.val_share). What begins with a dot is passed over. Raises
    SourceError naming the file that is no image.
    """
    class_names, files = _listed(folder)
    asked = _fingerprint(files, folder, recipe)
    seal = out / _SEAL
    if not (seal.is_file() and seal.read_text() == asked):
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        _write(folder, class_names, files, recipe, out)
        seal.write_text(asked)
    return pixelset.load(out)


def _write(folder: Path, class_names: list[str], files: list[_File], recipe: Recipe, out: Path) -> None:
    with ThreadPoolExecutor(num_cores()) as pool:
        ids = list(pool.map(_sha256, (file.path for file in files)))
    named = [
        (file.split or _split_of(image_id, recipe), image_id, file) for image_id, file in zip(ids, files, strict=True)
    ]
    # Hashes in order are classes mixed, which is what streaming from neighbours needs.
    named.sort(key=lambda one: one[1])
    splits = {
        split: Images(
            keys=[file.path.relative_to(folder).as_posix() for into, _, file in named if into == split],
            ids=[image_id for into, image_id, _ in named if into == split],
            labels=[file.label for into, _, file in named if into == split],
            weights=[1.0 for into, _, _ in named if into == split],
        )
        for split in ("train", "val")
    }
    layouts = {"train": layout.training(recipe, len(splits["train"])), "val": layout.evaluation(recipe)}
    try:
        preparation.write(splits, layouts, partial(LocalStorage, folder), out, "take it out of the folder")
    except DarkroomError as error:
        raise SourceError(str(error)) from error
    counts = {split: len(images) for split, images in splits.items()}
    spec = layouts["val"].spec.to_json()
    pixelset.write_index(out, class_names=class_names, preprocessing=spec, splits=counts)


def _listed(folder: Path) -> tuple[list[str], list[_File]]:
    """Class names and files, both in order. Raises SourceError for fewer than two classes."""
    below = _folders(folder)
    has_splits = bool(below) and all(one.name in {*_SPLITS, "test"} for one in below)
    roots = {_SPLITS[one.name]: one for one in below if one.name in _SPLITS} if has_splits else {"": folder}
    if "val" not in roots:
        roots = {"": roots["train"]} if "train" in roots else roots
    class_names = sorted({one.name for root in roots.values() for one in _folders(root)})
    if len(class_names) < 2:
        raise SourceError(f"{folder}: expected pixelset.json, or at least two folders of images named by their class")
    files = [
        _File(split=split, label=label, path=path)
        for split, root in roots.items()
        for label, name in enumerate(class_names)
        for path in _files_below(root / name)
    ]
    return class_names, files


def _folders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(one for one in folder.iterdir() if one.is_dir() and not one.name.startswith("."))


def _files_below(folder: Path) -> Iterator[Path]:
    """In order; without what file managers and editors leave behind."""
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(parent, name) for name in sorted(names) if not name.startswith("."))


def _fingerprint(files: list[_File], folder: Path, recipe: Recipe) -> str:
    """SHA-256 of what the pixel set depends on: names, sizes and times of the files, the recipe's part, and the
    versions of the libraries that decode.
    """
    digest = hashlib.sha256()
    spec = json.dumps(spec_of(recipe.preprocessing).to_json(), sort_keys=True)
    for part in (spec, layout.choice(recipe), digest_of(recipe.split)):
        digest.update(f"{part}\n".encode())
    for file in files:
        status = file.path.stat()
        digest.update(f"{file.path.relative_to(folder)} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _split_of(image_id: str, recipe: Recipe) -> str:
    drawn = hashlib.sha256(f"{recipe.split.salt}\0{image_id}".encode()).digest()
    return "val" if int.from_bytes(drawn[:8]) / 2**64 < recipe.split.val_share else "train"
