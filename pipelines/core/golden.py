"""The golden set: images whose pixels and logits every node that serves must reproduce."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, zip_longest

import numpy as np
from PIL import Image

from pipelines.core.preprocessing import decode

NUM_IMAGES = 64
_LARGE_BYTES = 1 << 20
_REDUCED_SIDE = 1024
_SPECIAL_SIDE = 512
_ORIENTATION_TAG = 0x0112
_ROTATED = 6
_EXTENSIONS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "BMP": "bmp", "GIF": "gif"}

Case = tuple[str, str, bytes]
"""Case, file extension, bytes."""


def choose(image_ids: Sequence[str], labels: Sequence[int], read_image: Callable[[str], bytes]) -> Iterator[Case]:
    """64 of the images (all where there are fewer), as many of each class as can be, the same ones every time.

    The set travels with every bento, so a file above 1 MiB is replaced by a smaller copy.
    """
    for image_id in _stratified(image_ids, labels)[:NUM_IMAGES]:
        data = read_image(image_id)
        decoded = decode(data)
        if len(data) <= _LARGE_BYTES:
            yield "val", _EXTENSIONS[decoded.format], data
        else:
            decoded.image.thumbnail((_REDUCED_SIDE, _REDUCED_SIDE))
            yield "val-reduced", "jpg", _encoded(decoded.image, "JPEG", quality=90)


def _stratified(image_ids: Sequence[str], labels: Sequence[int]) -> list[str]:
    """All ids, one of each class in turn. Ids are digests, so their order is as good as random."""
    by_class: dict[int, list[str]] = {}
    for image_id, label in sorted(zip(image_ids, labels, strict=True)):
        by_class.setdefault(label, []).append(image_id)
    rounds = zip_longest(*(by_class[label] for label in sorted(by_class)))
    return [image_id for image_id in chain.from_iterable(rounds) if image_id is not None]


def special_cases(data: bytes) -> Iterator[Case]:
    """An image in the encodings that decoders treat apart: rotated by EXIF, CMYK, 16-bit, palette, transparent."""
    image = decode(data).image
    image.thumbnail((_SPECIAL_SIDE, _SPECIAL_SIDE))
    exif = Image.Exif()
    exif[_ORIENTATION_TAG] = _ROTATED
    yield "exif", "jpg", _encoded(image, "JPEG", quality=90, exif=exif.tobytes())
    yield "cmyk", "jpg", _encoded(image.convert("CMYK"), "JPEG", quality=90)
    grey = np.asarray(image.convert("L")).astype(np.uint16) * 257
    yield "16-bit", "png", _encoded(Image.fromarray(grey), "PNG")
    yield "palette", "png", _encoded(image.quantize(64, dither=Image.Dither.NONE), "PNG")
    transparent = image.convert("RGBA")
    transparent.putalpha(image.convert("L"))
    yield "alpha", "png", _encoded(transparent, "PNG")


def _encoded(image: Image.Image, form: str, *, quality: int = 75, exif: bytes = b"") -> bytes:
    buffer = io.BytesIO()
    if form == "JPEG":
        image.save(buffer, form, quality=quality, exif=exif)
    else:
        image.save(buffer, form)
    return buffer.getvalue()
