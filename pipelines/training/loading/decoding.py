"""Random crops from encoded images: the one place where training decodes otherwise than serving, for speed.

Plain JPEGs are decoded by simplejpeg (libjpeg-turbo) at the smallest scale at which the crop is not enlarged, with the
fast transform and upsampling; everything else by `core.preprocessing`, and all of it where simplejpeg is not installed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from torch.nn.functional import interpolate

from pipelines.core.pixelset import Pixels
from pipelines.core.preprocessing import MAX_BYTES, MAX_PIXELS, decode, is_turned

_ORIENTED = (b"Exif\0\0", b"http://ns.adobe.com/xap/")
_METADATA_BYTES = 65_536


def decode_crop(
    data: bytes, size: tuple[int, int], box: Sequence[float], mirrored: bool, height: int, width: int
) -> Pixels:
    """uint8 [height, width, 3]: a part of an encoded image, scaled (bilinear, antialiased) and mirrored where asked.

    `size` is the image's height and width in px, `box` its top, left, height and width as shares. Raises ImageError.
    """
    image = _image(data, size, box, height, width)
    rows, columns = image.shape[:2]
    num_rows, num_columns = max(1, round(box[2] * rows)), max(1, round(box[3] * columns))
    top, left = min(round(box[0] * rows), rows - num_rows), min(round(box[1] * columns), columns - num_columns)
    part = torch.from_numpy(image[top : top + num_rows, left : left + num_columns]).permute(2, 0, 1)[None]
    # In one piece, else torch answers in planes: three times slower with what follows.
    part = part.contiguous(memory_format=torch.channels_last)
    scaled = interpolate(part, (height, width), mode="bilinear", antialias=True)
    found: Pixels = (scaled.flip(3) if mirrored else scaled)[0].permute(1, 2, 0).numpy()
    return found


def _image(data: bytes, size: tuple[int, int], box: Sequence[float], height: int, width: int) -> Pixels:
    """The whole image, uint8 [rows, columns, 3], no smaller than the crop needs unless the file is."""
    decode_jpeg = _decode_jpeg()
    if decode_jpeg is not None and _is_plain_jpeg(data, size):
        reduction = _reduction(min(box[2] * size[0] / height, box[3] * size[1] / width))
        try:
            found: Pixels = decode_jpeg(
                data,
                fastdct=True,
                fastupsample=True,
                min_height=math.ceil(size[0] / reduction),
                min_width=math.ceil(size[1] / reduction),
            )
            return found
        except ValueError:
            pass  # such as CMYK, or damage that the other decoder describes
    needed = (math.ceil(width / box[3]), math.ceil(height / box[2]))
    return np.array(decode(data, at_least=needed).image)


@cache
def _decode_jpeg() -> Callable[..., Any] | None:
    try:
        from simplejpeg import decode_jpeg
    except ImportError:
        return None
    found: Callable[..., Any] = decode_jpeg
    return found


def _reduction(scale: float) -> int:
    """The largest of 1, 2, 4 and 8 up to `scale`. libjpeg-turbo's other scales lack vector code: 7/8 takes 2.2 times as
    long as no reduction at all."""
    return next((one for one in (8, 4, 2) if one <= scale), 1)


def _is_plain_jpeg(data: bytes, size: tuple[int, int]) -> bool:
    """Whether it is a JPEG whose pixels lie as they are seen, within the bounds of `core.preprocessing`."""
    if not data.startswith(b"\xff\xd8\xff") or len(data) > MAX_BYTES or size[0] * size[1] > MAX_PIXELS:
        return False
    # Most files carry no such block, and to search for one takes a hundredth of reading the header.
    may_be_turned = any(data.find(mark, 0, _METADATA_BYTES) >= 0 for mark in _ORIENTED)
    return not may_be_turned or not is_turned(data)
