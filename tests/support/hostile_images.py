"""Images as attackers send them: made here, and those of a tar where HOSTILE_IMAGES names one."""

from __future__ import annotations

import io
import os
import random
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")


def encoded(kind: str, side: int = 48, **options: object) -> bytes:
    pixels = np.random.default_rng(side).integers(0, 256, (side, side, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def made(variants: int = 8) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of each; `variants` truncated and as many flipped ones a format."""
    chance = random.Random(0)
    sources = {kind: encoded(kind) for kind in FORMATS}
    sources["progressive"] = encoded("JPEG", progressive=True)
    for kind, data in sources.items():
        for number in range(variants):
            yield f"{kind}-cut-{number}", data[: len(data) * number // variants]
            flipped = bytearray(data)
            for _ in range(1 + number):
                flipped[chance.randrange(len(flipped))] ^= 1 << chance.randrange(8)
            yield f"{kind}-flipped-{number}", bytes(flipped)
        yield f"{kind}-twice", data + data
        yield f"{kind}-head-of-another", sources["PNG"][:16] + data[16:]
    yield from bombs()
    yield from strangers()


def bombs() -> Iterator[tuple[str, bytes]]:
    """Small files that become large."""
    for side in (4_800, 5_000, 30_000, 2**31 - 1):
        yield f"png-of-{side}", _png(side, side, rows=64)
    yield "png-of-nothing", _png(0, 10, rows=0)
    yield "png-chunk-of-2-GiB", encoded("PNG")[:33] + struct.pack("!I", 2**31 - 1) + b"IDAT"
    yield "png-text-bomb", _with_chunk(encoded("PNG"), b"zTXt", b"a\0\0" + zlib.compress(bytes(50_000_000), 9))
    yield "png-profile-bomb", _with_chunk(encoded("PNG"), b"iCCP", b"a\0\0" + zlib.compress(bytes(50_000_000), 9))
    yield "gif-of-65535", b"GIF89a" + struct.pack("<HH", 65_535, 65_535) + encoded("GIF")[10:]
    frames = [Image.new("P", (64, 64), number) for number in range(200)]
    file = io.BytesIO()
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    yield "gif-of-200-frames", file.getvalue()
    yield "bmp-of-65535", encoded("BMP")[:18] + struct.pack("<ii", 65_535, 65_535) + encoded("BMP")[26:]
    yield "bmp-upwards", encoded("BMP")[:18] + struct.pack("<ii", -48, -(2**31)) + encoded("BMP")[26:]
    jpeg = encoded("JPEG")
    place = jpeg.index(b"\xff\xc0")
    yield "jpeg-of-65535", jpeg[: place + 5] + struct.pack("!HH", 65_535, 65_535) + jpeg[place + 9 :]
    yield (
        "jpeg-exif-bomb",
        jpeg[:2] + b"\xff\xe1" + struct.pack("!H", 65_535) + b"Exif\0\0MM\0*" + bytes(65_523) + jpeg[2:],
    )
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as inside:
        inside.writestr("image.png", bytes(50_000_000))
    yield "zip-bomb", archive.getvalue()


def strangers() -> Iterator[tuple[str, bytes]]:
    """What is no image, or one of a kind that nobody asked for."""
    for kind in ("TIFF", "ICO", "PPM", "TGA", "PCX", "EPS", "SGI", "JPEG2000", "DDS"):
        yield f"a-{kind}", encoded(kind)
    yield "svg", b'<svg xmlns="http://www.w3.org/2000/svg" onload="alert(1)"/>'
    yield "xml-bomb", b'<!DOCTYPE a [<!ENTITY b "c">]><svg>&b;</svg>'
    yield "postscript", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(id) system\n"
    yield "html", b"<script>alert(1)</script>"
    yield "zeros", bytes(100_000)
    yield "noise", random.Random(1).randbytes(100_000)
    yield "one-byte", b"\xff"


def given() -> Iterator[tuple[str, bytes]]:
    """The files of the tar that HOSTILE_IMAGES names; none where it is not set."""
    path = os.environ.get("HOSTILE_IMAGES")
    if path:
        with tarfile.open(Path(path)) as tar:
            for member in tar:
                file = tar.extractfile(member) if member.isfile() else None
                if file is not None:
                    yield member.name, file.read()


def _png(width: int, height: int, *, rows: int) -> bytes:
    """Of so many rows as stand in its header, or fewer."""
    row = b"\0" + bytes(3 * min(width, 30_000))
    head = struct.pack("!IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(row * (height if height <= 5_000 else rows), 9)
    chunks = (_chunk(b"IHDR", head), _chunk(b"IDAT", data), _chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def _with_chunk(png: bytes, kind: bytes, data: bytes) -> bytes:
    return png[:33] + _chunk(kind, data) + png[33:]


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack("!I", len(data)) + kind + data + struct.pack("!I", zlib.crc32(kind + data))
