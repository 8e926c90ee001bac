"""What a worker process that fills a pixel set does. Apart from the rest, so that a worker starts without Parquet."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipelines.core.errors import DarkroomError, ImageError
from pipelines.core.layout import Layout
from pipelines.core.pixelset import PixelFiles
from pipelines.core.storage.interface import Storage


@dataclass(frozen=True, kw_only=True)
class Row:
    """One image and its place in the pixel set."""

    split: str
    position: int
    key: str
    """Where its bytes are stored."""


def start(
    open_storage: Callable[[], Storage], layouts: Mapping[str, Layout], out: Path
) -> Callable[[Sequence[Row]], list[str]]:
    """The function of one worker: decode rows into their places; a text for each that failed, empty for the others."""
    storage = open_storage()
    files = {split: PixelFiles(out, split) for split in layouts}

    def decode(rows: Sequence[Row]) -> list[str]:
        return [_decode(row, files[row.split], storage, layouts[row.split]) for row in rows]

    return decode


def _decode(row: Row, files: PixelFiles, storage: Storage, layout: Layout) -> str:
    try:
        files.write(row.position, *layout.pixels_of(storage.read(row.key)))
    except ImageError as error:
        return f"{storage.locate(row.key)}: does not decode ({error.detail})"
    except DarkroomError as error:
        return str(error)
    return ""
