"""Stored images to a pixel set, on all cores."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from pipelines.core import decoding, pixelset
from pipelines.core.ahead import ahead
from pipelines.core.cores import num_cores
from pipelines.core.decoding import Row
from pipelines.core.errors import DarkroomError, ImageError
from pipelines.core.layout import Layout
from pipelines.core.pixelset import EncodedWriter
from pipelines.core.preprocessing import measure
from pipelines.core.storage.interface import Storage
from pipelines.core.workers import Workers

_CHUNK = 64
_FEW = 2000
"""Images that are decoded sooner than worker processes would start."""
_READERS = 8
"""Threads that read encoded images; they wait for disk or network, not for a core."""


@dataclass(frozen=True, kw_only=True)
class Images:
    """The images of a split, row by row."""

    keys: Sequence[str]
    """Where their bytes are stored."""
    ids: Sequence[str]
    labels: Sequence[int]
    weights: Sequence[float]

    def __len__(self) -> int:
        return len(self.ids)


def write(
    splits: Mapping[str, Images],
    layouts: Mapping[str, Layout],
    open_storage: Callable[[], Storage],
    out: Path,
    mend: str,
) -> None:
    """Write the images of each split by its layout, and everything of a pixel set but its index.

    `open_storage` is called in worker processes too, and has to survive the way there, as a partial of a class does.
    Memory does not grow with the number of images but for what `Images` holds. Raises DarkroomError naming the first
    image that cannot be read, with the `mend`.
    """
    for split, images in splits.items():
        keys = images.keys if layouts[split].encoded else ()
        pixelset.write_split(out, split, labels=images.labels, weights=images.weights, ids=images.ids, keys=keys)
        if layouts[split].encoded:
            _copy(images, open_storage(), EncodedWriter(out, split, len(images)), mend)
    decoded = {split: layout for split, layout in layouts.items() if not layout.encoded}
    for split, layout in decoded.items():
        shape = (len(splits[split]), layout.spec.height, layout.spec.width)
        pixelset.create_pixels(out, split, *shape, whole=layout.whole)
    _decode({split: splits[split] for split in decoded}, decoded, open_storage, out, mend)


def _decode(
    splits: Mapping[str, Images],
    layouts: Mapping[str, Layout],
    open_storage: Callable[[], Storage],
    out: Path,
    mend: str,
) -> None:
    arguments = (open_storage, layouts, out)
    if sum(map(len, splits.values())) <= _FEW:
        answers: Iterator[list[str]] = map(decoding.start(*arguments), _chunks(splits))
    else:
        answers = Workers(decoding.start, arguments, _crashed, num_cores()).map(_chunks(splits))
    for complaints in answers:
        for complaint in filter(None, complaints):
            raise DarkroomError(f"{complaint}; {mend}")


def _chunks(splits: Mapping[str, Images]) -> Iterator[list[Row]]:
    for split, images in splits.items():
        for start in range(0, len(images), _CHUNK):
            keys = images.keys[start : start + _CHUNK]
            yield [Row(split=split, position=start + offset, key=key) for offset, key in enumerate(keys)]


def _crashed(row: Row) -> str:
    return f"{row.key}: decoding it ended the process that tried"


def _copy(images: Images, storage: Storage, writer: EncodedWriter, mend: str) -> None:
    def read(key: str) -> tuple[bytes, int, int]:
        try:
            data = storage.read(key)
            return data, *measure(data)
        except ImageError as error:
            raise DarkroomError(f"{storage.locate(key)}: does not decode ({error.detail}); {mend}") from error
        except DarkroomError as error:
            raise DarkroomError(f"{error}; {mend}") from error

    with ThreadPoolExecutor(_READERS) as pool:
        for data, height, width in ahead(pool, read, images.keys, 4 * _READERS):
            writer.append(data, height, width)
    writer.close()
