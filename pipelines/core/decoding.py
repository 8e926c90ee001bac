"""What a worker process of `prepare` does. Apart from the step, so that a worker starts without Parquet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipelines.core import pixelset
from pipelines.core.datasets import blob_key
from pipelines.core.errors import DarkroomError, ImageError
from pipelines.core.preprocessing import PreprocessingSpec, preprocess
from pipelines.core.storage import Storage, open_storage


@dataclass(frozen=True, kw_only=True)
class Row:
    """One image and its place in the pixel set."""

    split: str
    position: int
    image_id: str


def start(
    store_uri: str, endpoint_url: str | None, spec: PreprocessingSpec, out: Path
) -> Callable[[Sequence[Row]], list[str]]:
    """The function of one worker: decode rows into their places; a text for each that failed, empty for the others."""
    storage = open_storage(store_uri, endpoint_url=endpoint_url)

    def decode(rows: Sequence[Row]) -> list[str]:
        pixels = {split: pixelset.open_pixels(out, split) for split in {row.split for row in rows}}
        return [_decode(row, pixels[row.split], storage, spec) for row in rows]

    return decode


def _decode(row: Row, pixels: pixelset.Pixels, storage: Storage, spec: PreprocessingSpec) -> str:
    key = blob_key(row.image_id)
    try:
        pixels[row.position] = preprocess(storage.read(key), spec)
    except ImageError as error:
        return (
            f"{storage.locate(key)}: stored image does not decode ({error.detail}); ingest its interval again, or "
            "withdraw the image"
        )
    except DarkroomError as error:
        return f"{error}; ingest its interval again"
    return ""
