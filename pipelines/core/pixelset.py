"""The images of a training on disk, decoded once or encoded as they came. Only NumPy is needed.

pixelset.json               class names, preprocessing spec, and what each split holds; written last
<split>-labels.npy          int64 [N]
<split>-weights.npy         float32 [N]
<split>-ids.npy             bytes [N]

decoded:
<split>-pixels-00000.npy …  uint8 [rows, H, W, 3], at most SHARD_BYTES each
<split>-sizes.npy           int32 [N, 2], only where whole images were squashed to H x W: height and width they had

encoded:
<split>-images-00000.bin …  the files' bytes, one after the other, at most SHARD_BYTES each unless it is one file
<split>-spans.npy           int64 [N, 3]: shard, first byte, end
<split>-sizes.npy           int32 [N, 2]: height and width, px, as a person would see the image
<split>-keys.npy            bytes [N]: where each file lies in the store, or in the folder, that it was copied from
"""

from __future__ import annotations

import json
import os
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.core import embedded, stored_texts
from pipelines.core.embedded import Embedded
from pipelines.core.errors import IntegrityError, SourceError

INDEX = "pixelset.json"
SHARD_BYTES = 1 << 30
CALIBRATION = "calibration"
"""A split of some training images, where the training split has embeddings instead of pixels."""

Pixels = NDArray[np.uint8]
Rows = NDArray[np.int64]
Sizes = NDArray[np.int32]


class DecodedImages:
    """uint8 [N, H, W, 3] in one or more arrays, memory maps where they come from disk."""

    def __init__(self, shards: Sequence[Pixels], sizes: Sizes | None = None) -> None:
        self._shards = tuple(shards)
        self._starts = np.cumsum([0, *(len(shard) for shard in self._shards)])
        self.height: int = self._shards[0].shape[1]
        self.width: int = self._shards[0].shape[2]
        self.sizes = sizes
        """int32 [N, 2]: the original height and width where whole images were squashed; None for evaluation pixels."""

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def num_bytes(self) -> int:
        return len(self) * self.height * self.width * 3

    def image(self, row: int) -> Pixels:
        """uint8 [H, W, 3]"""
        shard = int(np.searchsorted(self._starts, row, side="right")) - 1
        found: Pixels = self._shards[shard][row - int(self._starts[shard])]
        return found

    def rows(self, rows: Rows, out: Pixels | None = None) -> Pixels:
        """uint8 [len(rows), H, W, 3] in the order of `rows`, written to `out` where given."""
        found = np.empty((len(rows), self.height, self.width, 3), np.uint8) if out is None else out
        if len(self._shards) == 1:
            np.take(self._shards[0], rows, axis=0, out=found, mode="clip")  # "raise" would write to a copy first
            return found
        shards = np.searchsorted(self._starts, rows, side="right") - 1
        places = zip(shards.tolist(), (rows - self._starts[shards]).tolist(), strict=True)
        for position, (shard, row) in enumerate(places):
            found[position] = self._shards[shard][row]
        return found

    def first(self, num_images: int) -> DecodedImages:
        """The first of them, not copied."""
        shards = [shard[: max(0, num_images - start)] for shard, start in zip(self._shards, self._starts, strict=False)]
        return DecodedImages(shards, None if self.sizes is None else self.sizes[:num_images])

    def batches(self, size: int) -> Iterator[Pixels]:
        """All images in order, `size` at a time."""
        for start in range(0, len(self), size):
            yield self.rows(np.arange(start, min(start + size, len(self))))


class EncodedImages:
    """Encoded files, to be decoded when they are used. Safe to read from several threads.

    Read and not mapped: a page that has to come from the disk would stop every thread of the interpreter, and mapped
    pages would count as this process's memory until all of the set is in it.
    """

    def __init__(self, shards: Sequence[Path], spans: NDArray[np.int64], sizes: Sizes) -> None:
        self._shards = [os.open(shard, os.O_RDONLY) for shard in shards]
        for shard in self._shards:
            weakref.finalize(self, os.close, shard)
        self._spans = spans
        self.sizes = sizes
        """int32 [N, 2]: height and width, px, after orientation."""

    def __len__(self) -> int:
        return len(self._spans)

    def data(self, row: int) -> bytes:
        shard, start, end = self._spans[row].tolist()
        return os.pread(self._shards[shard], end - start, start)


@dataclass(frozen=True, kw_only=True)
class Split:
    images: DecodedImages | EncodedImages
    labels: NDArray[np.int64]
    weights: NDArray[np.float32]
    ids: Sequence[str]
    keys: Sequence[str] = ()
    """Of encoded images: where each lies in the store, or in the folder, that it was copied from."""

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def pixels(self) -> DecodedImages:
        """Decoded images; a split to evaluate on always has them, at exactly the model's size."""
        if not isinstance(self.images, DecodedImages):
            raise TypeError("the split is encoded")
        return self.images


@dataclass(frozen=True, kw_only=True)
class PixelSet:
    class_names: tuple[str, ...]
    preprocessing: Mapping[str, Any]
    """The spec's JSON: what evaluation pixels are made by."""
    splits: Mapping[str, Split]
    embedded: Embedded | None = None
    """For training.mode = 'head': its training split is here, and `splits` holds 'calibration' and 'val'."""


def rows_per_shard(height: int, width: int) -> int:
    return max(1, SHARD_BYTES // (height * width * 3))


def create_pixels(folder: Path, split: str, num_images: int, height: int, width: int, *, whole: bool) -> None:
    """Lay out empty files, to be filled through `PixelFiles`; `whole` images come with the sizes they had."""
    if whole:
        np.save(_sizes(folder, split), np.zeros((num_images, 2), np.int32))
    step = rows_per_shard(height, width)
    for shard, start in enumerate(range(0, max(1, num_images), step)):
        shape = (min(step, num_images - start), height, width, 3)
        np.lib.format.open_memmap(
            _shard(folder, split, "pixels", shard), mode="w+", dtype=np.uint8, shape=shape
        ).flush()


class PixelFiles:
    """The pixel files of a split, writable by several processes at once in different rows."""

    def __init__(self, folder: Path, split: str) -> None:
        paths = sorted(folder.glob(f"{split}-pixels-*.npy"))
        self._shards = [np.load(path, mmap_mode="r+", allow_pickle=False) for path in paths]
        self._step = len(self._shards[0])
        sizes = _sizes(folder, split)
        self._sizes = np.load(sizes, mmap_mode="r+", allow_pickle=False) if sizes.exists() else None

    def write(self, row: int, pixels: Pixels, height: int, width: int) -> None:
        """`height` and `width` are those the image had, px."""
        self._shards[row // self._step][row % self._step] = pixels
        if self._sizes is not None:
            self._sizes[row] = height, width


class EncodedWriter:
    """Appends encoded files in the order of their rows; `close` writes where each begins and ends."""

    def __init__(self, folder: Path, split: str, num_images: int) -> None:
        self._folder, self._split = folder, split
        self._spans = np.zeros((num_images, 3), np.int64)
        self._sizes = np.zeros((num_images, 2), np.int32)
        self._row = 0
        self._number = 0
        self._file = _shard(folder, split, "images", 0).open("wb")

    def append(self, data: bytes, height: int, width: int) -> None:
        """`height` and `width` in px, after orientation."""
        start = self._file.tell()
        if start and start + len(data) > SHARD_BYTES:
            self._file.close()
            self._number, start = self._number + 1, 0
            self._file = _shard(self._folder, self._split, "images", self._number).open("wb")
        self._file.write(data)
        self._spans[self._row] = self._number, start, start + len(data)
        self._sizes[self._row] = height, width
        self._row += 1

    def close(self) -> None:
        self._file.close()
        np.save(self._folder / f"{self._split}-spans.npy", self._spans)
        np.save(_sizes(self._folder, self._split), self._sizes)


def write_split(
    folder: Path,
    split: str,
    *,
    labels: Sequence[int],
    weights: Sequence[float],
    ids: Sequence[str],
    keys: Sequence[str] = (),
) -> None:
    """Everything of a split but its images; `keys` where these are encoded."""
    np.save(folder / f"{split}-labels.npy", np.asarray(labels, np.int64))
    np.save(folder / f"{split}-weights.npy", np.asarray(weights, np.float32))
    stored_texts.write(folder / f"{split}-ids.npy", ids)
    if keys:
        stored_texts.write(folder / f"{split}-keys.npy", keys)


def write_index(
    folder: Path, *, class_names: Sequence[str], preprocessing: Mapping[str, Any], splits: Mapping[str, int]
) -> None:
    table = {"class_names": list(class_names), "preprocessing": dict(preprocessing), "splits": dict(splits)}
    (folder / INDEX).write_text(json.dumps(table, indent=1, sort_keys=True, ensure_ascii=False) + "\n", "utf-8")


def load(folder: Path) -> PixelSet:
    """Raises SourceError where the folder is no pixel set, IntegrityError where its files do not fit together."""
    try:
        table = json.loads((folder / INDEX).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise SourceError(f"{folder / INDEX}: not a pixel set ({error})") from error
    return PixelSet(
        class_names=tuple(table["class_names"]),
        preprocessing=table["preprocessing"],
        splits={split: _load_split(folder, split, num_images) for split, num_images in table["splits"].items()},
        embedded=embedded.load(folder),
    )


def _load_split(folder: Path, split: str, num_images: int) -> Split:
    spans, keys, sizes_file = folder / f"{split}-spans.npy", folder / f"{split}-keys.npy", _sizes(folder, split)
    sizes = np.load(sizes_file, allow_pickle=False) if sizes_file.exists() else None
    images = (
        _load_encoded(folder, split, np.load(spans, allow_pickle=False), sizes)
        if spans.exists()
        else _load_decoded(folder, split, sizes)
    )
    found = Split(
        images=images,
        labels=np.load(folder / f"{split}-labels.npy", allow_pickle=False),
        weights=np.load(folder / f"{split}-weights.npy", allow_pickle=False),
        ids=stored_texts.load(folder / f"{split}-ids.npy", num_images),
        keys=stored_texts.load(keys, num_images) if keys.exists() else (),
    )
    lengths = {len(found.images), len(found.labels), len(found.weights), len(found.ids)}
    lengths |= {len(one) for one in (sizes, found.keys or None) if one is not None}
    if lengths != {num_images}:
        raise IntegrityError(f"{folder}: split {split} has {sorted(lengths)} rows where {INDEX} says {num_images}")
    return found


def _load_decoded(folder: Path, split: str, sizes: Sizes | None) -> DecodedImages:
    shards = []
    for path in sorted(folder.glob(f"{split}-pixels-*.npy")):
        empty = path.stat().st_size < 256  # nothing to map
        # Copy-on-write: torch warns about arrays that it could not write to.
        shards.append(np.load(path, mmap_mode=None if empty else "c", allow_pickle=False))
        if shards[-1].dtype != np.uint8 or shards[-1].ndim != 4:
            raise IntegrityError(f"{path}: expected uint8 [N, H, W, 3]")
    if not shards:
        raise IntegrityError(f"{folder}: the images of split {split} are missing")
    return DecodedImages(shards, sizes)


def _load_encoded(folder: Path, split: str, spans: NDArray[np.int64], sizes: Sizes | None) -> EncodedImages:
    if sizes is None:
        raise IntegrityError(f"{_sizes(folder, split)}: missing")
    shards = sorted(folder.glob(f"{split}-images-*.bin"))
    ends = np.array([path.stat().st_size for path in shards], np.int64)
    if len(spans) and (spans[:, 0].max() >= len(shards) or (spans[:, 2] > ends[spans[:, 0]]).any()):
        raise IntegrityError(f"{folder}: the images of split {split} are not all there")
    return EncodedImages(shards, spans, sizes)


def _sizes(folder: Path, split: str) -> Path:
    return folder / f"{split}-sizes.npy"


def _shard(folder: Path, split: str, kind: str, number: int) -> Path:
    return folder / f"{split}-{kind}-{number:05d}.{'npy' if kind == 'pixels' else 'bin'}"
