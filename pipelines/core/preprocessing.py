"""Encoded bytes to uint8 pixels of the model's size: the only source of evaluation and serving pixels.

Image files come from strangers. Only five formats are opened, chosen by content; the pixel count is checked before any
pixel is decoded; and whatever a decoder raises becomes an ImageError with a stable reason (on 17,000 hostile files
Pillow raised 433 exceptions that were no OSError).
"""

from __future__ import annotations

import dataclasses
import io
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt
import PIL
from PIL import Image, UnidentifiedImageError, features

from pipelines.core.errors import ImageError, IntegrityError, PlatformError, UserError
from pipelines.core.recipe import Preprocessing

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")
MAX_PIXELS = 24_000_000
MAX_BYTES = 64 * 1024 * 1024
"""Larger files are refused unread; a 24-megapixel BMP with alpha has 96 MB, a photograph 5 to 15."""

VERSION = 1
"""Raised by whoever changes what pixels come out of `preprocess`."""

_FILTERS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
}

# A damaged EXIF block or a large picture makes Pillow warn; both are handled here.
warnings.filterwarnings("ignore", module=r"PIL\.")


@dataclass(frozen=True, kw_only=True)
class PreprocessingSpec:
    """What `preprocess` does, in full; it travels in the model package."""

    height: int
    width: int
    fit: str
    """`crop` keeps the aspect and crops the centre, `squash` stretches."""
    resize: int = 0
    """With `crop`: the shorter side, px, that an image is resized to before its centre is cut out, as torchvision does
    it; 0 keeps as much of the image as the model's shape allows."""
    filter: str = "bilinear"
    """Antialiased; its support grows with the reduction."""
    decoder: str = "pillow"
    version: int = VERSION
    pillow: str = ""
    libjpeg: str = ""

    def to_json(self) -> dict[str, str | int]:
        """`resize` is left out where it does nothing, so that packages without it keep their digests."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name != "resize" or value}

    @property
    def least(self) -> tuple[int, int]:
        """Width and height, px, below which decoding must not reduce an image."""
        return max(self.width, self.resize), max(self.height, self.resize)

    @classmethod
    def from_json(cls, table: Mapping[str, str | int]) -> PreprocessingSpec:
        """Raises IntegrityError for a spec that this code cannot honour. Other library versions are no error here:
        whether they matter is for the golden pixel hashes to say."""
        known = {field.name for field in dataclasses.fields(cls)}
        if set(table) - known or not {"height", "width", "fit"} <= set(table):
            raise IntegrityError(f"preprocessing spec: expected the keys {', '.join(sorted(known))}; found {table}")
        spec = cls(**table)  # type: ignore[arg-type]
        if spec.decoder != "pillow" or spec.version != VERSION or spec.filter not in _FILTERS:
            raise IntegrityError(f"preprocessing spec: made by another version of this code: {table}")
        return spec


@cache
def library_versions() -> dict[str, str]:
    """Versions of the libraries that decide about pixels."""
    return {"pillow": PIL.__version__, "libjpeg": features.version("libjpeg_turbo") or features.version("jpg") or ""}


def spec_of(section: Preprocessing) -> PreprocessingSpec:
    """The full spec of a recipe's section, with the libraries installed here."""
    found = library_versions()
    return PreprocessingSpec(
        height=section.height,
        width=section.width,
        fit=section.fit,
        pillow=found["pillow"],
        libjpeg=found["libjpeg"],
    )


def resized_and_cropped(height: int, width: int, resize: int, filter: str) -> PreprocessingSpec:  # noqa: A002
    """The spec of torchvision's Resize(resize) and CenterCrop, with the libraries installed here.

    Raises UserError where the resized image would be smaller than what is to be cut out of it.
    """
    if resize < max(height, width):
        raise UserError(
            f"--resize {resize}: must be at least the {max(height, width)} px that are cut out of the image"
        )
    found = library_versions()
    return PreprocessingSpec(
        height=height,
        width=width,
        fit="crop",
        resize=resize,
        filter=filter,
        pillow=found["pillow"],
        libjpeg=found["libjpeg"],
    )


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """An image as a person would see it."""

    image: Image.Image
    """RGB, oriented, transparency on white; smaller than the file says where `at_least` allowed it."""
    format: str
    """One of FORMATS."""
    mode: str
    """Pillow's mode of the file, such as `CMYK`, `I;16` or `P`."""
    width: int
    """px, after orientation."""
    height: int


def decode(data: bytes, *, at_least: tuple[int, int] | None = None) -> Decoded:
    """Decode the first frame completely. Raises ImageError; and PlatformError where the machine is to blame.

    `at_least` (width, height) lets the JPEG decoder skip detail by a power of two as long as both sides stay twice as
    large as that; libjpeg's scaled transform is exact, so the same bytes give the same pixels.
    """
    with _only_image_errors(data):
        return _decode(data, at_least)


def measure(data: bytes) -> tuple[int, int]:
    """Height and width, px, as a person would see the image, from its header alone: only a PNG that tells its
    orientation after its pixels is decoded. Raises what `decode` raises.
    """
    with _only_image_errors(data), _opened(data) as image:
        _read_late_metadata(image, data)
        width, height = image.size
        return (width, height) if _TURNS.get(_orientation(image)) in _SWAPS_SIDES else (height, width)


def is_turned(data: bytes) -> bool:
    """Whether pixels are stored otherwise than a person would see them. Raises what `decode` raises."""
    with _only_image_errors(data), _opened(data) as image:
        _read_late_metadata(image, data)
        return _TURNS.get(_orientation(image)) is not None


@contextmanager
def _only_image_errors(data: bytes) -> Iterator[None]:
    if not data:
        raise ImageError("empty", "the file is empty")
    if len(data) > MAX_BYTES:
        raise ImageError("too_many_bytes", f"{len(data):,} bytes; at most {MAX_BYTES:,}")
    try:
        yield
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageError("too_many_pixels", f"more than {MAX_PIXELS:,} pixels") from error
    except UnidentifiedImageError as error:
        raise _unidentified(data) from error
    except MemoryError as error:
        raise PlatformError("too little memory to decode an image") from error
    except Exception as error:  # the one place where every decoder error ends
        text = str(error) or type(error).__name__
        short = isinstance(error, EOFError) or "truncated" in text.lower()
        raise ImageError("truncated" if short else "corrupt", text[:200]) from error


def preprocess(data: bytes, spec: PreprocessingSpec) -> npt.NDArray[np.uint8]:
    """Pixels uint8 [height, width, 3] (RGB) of encoded bytes. Raises what `decode` raises."""
    return resize(decode(data, at_least=spec.least).image, spec)


def resize(image: Image.Image, spec: PreprocessingSpec) -> npt.NDArray[np.uint8]:
    """Pixels uint8 [height, width, 3] of an RGB image."""
    if spec.resize:
        return _centre_of_resized(image, spec)
    box = (0.0, 0.0, float(image.width), float(image.height))
    if spec.fit == "crop":
        scale = min(image.width / spec.width, image.height / spec.height)
        left, top = (image.width - spec.width * scale) / 2, (image.height - spec.height * scale) / 2
        box = (
            max(left, 0.0),
            max(top, 0.0),
            min(image.width - left, float(image.width)),
            min(image.height - top, float(image.height)),
        )
    return np.array(image.resize((spec.width, spec.height), _FILTERS[spec.filter], box=box), dtype=np.uint8)


def _centre_of_resized(image: Image.Image, spec: PreprocessingSpec) -> npt.NDArray[np.uint8]:
    """What torchvision's Resize(resize) and CenterCrop keep, pixel for pixel: sizes and corners are rounded as there.

    Where the whole would have too many pixels (a line of 24 million by 1 px, 256 px high, is a terabyte) only those
    that are kept are made, which may differ by 1/255 in one of a thousand.
    """
    short, long = min(image.size), max(image.size)
    far = int(spec.resize * long / short)
    width, height = (spec.resize, far) if image.width <= image.height else (far, spec.resize)
    left, top = round((width - spec.width) / 2), round((height - spec.height) / 2)
    right, bottom = left + spec.width, top + spec.height
    chosen = _FILTERS[spec.filter]
    if width * height <= MAX_PIXELS:
        return np.array(image.resize((width, height), chosen).crop((left, top, right, bottom)), dtype=np.uint8)
    across, down = image.width / width, image.height / height
    box = (left * across, top * down, min(right * across, image.width), min(bottom * down, image.height))
    return np.array(image.resize((spec.width, spec.height), chosen, box=box), dtype=np.uint8)


@contextmanager
def _opened(data: bytes) -> Iterator[Image.Image]:
    """The image with its header read, its number of pixels within bounds."""
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise ImageError("too_many_pixels", f"{width} x {height}; at most {MAX_PIXELS:,} pixels")
        if width < 1 or height < 1:
            raise ImageError("corrupt", f"{width} x {height}: no pixels")
        yield image


def _decode(data: bytes, at_least: tuple[int, int] | None) -> Decoded:
    with _opened(data) as image:
        width, height = image.size
        name = "JPEG" if image.format == "MPO" else str(image.format)
        mode = image.mode
        if at_least is not None and name == "JPEG":
            # Square, because the orientation is not known yet.
            side = 2 * max(at_least)
            image.draft(None, (side, side))
        image.load()
        turn = _TURNS.get(_orientation(image))
        rgb = _to_rgb(image)
    if turn is not None:
        rgb = rgb.transpose(turn)
        if turn in _SWAPS_SIDES:
            width, height = height, width
    return Decoded(image=rgb, format=name, mode=mode, width=width, height=height)


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SWAPS_SIDES = (
    Image.Transpose.TRANSPOSE,
    Image.Transpose.ROTATE_270,
    Image.Transpose.TRANSVERSE,
    Image.Transpose.ROTATE_90,
)
_ORIENTATION_TAG = 0x0112
_MAY_ORIENT = ("exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif")


_LATE_MARKS = (b"eXIf", b"XML:com.adobe.xmp", b"Raw profile type exif")


def _read_late_metadata(image: Image.Image, data: bytes) -> None:
    """A PNG's orientation may follow its pixels, which Pillow reads first then."""
    if image.format == "PNG" and any(mark in data for mark in _LATE_MARKS):
        image.load()


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8. An unreadable EXIF block counts as none: its pixels are still good."""
    if not any(key in image.info for key in _MAY_ORIENT):
        return 1
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:
        return 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey: Pillow's own conversion clips instead of scaling
        grey = np.clip(np.asarray(image).astype(np.int64), 0, 65_535) >> 8
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


_MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"BM", b"GIF8", b"RIFF")
_FOREIGN = {
    "TIFF": (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
    "JPEG 2000": (b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51"),
    "JPEG XL": (b"\xff\x0a", b"\0\0\0\x0cJXL "),
    "Photoshop": (b"8BPS",),
    "icon": (b"\0\0\1\0", b"\0\0\2\0", b"icns"),
    "PDF or PostScript": (b"%PDF", b"%!PS", b"\xc5\xd0\xd3\xc6"),
    "DDS": (b"DDS ",),
    "SGI": (b"\x01\xda",),
    "PCX": (b"\x0a\x05\x01",),
    "portable map": (b"P1", b"P2", b"P3", b"P4", b"P5", b"P6", b"P7"),
    "OpenEXR": (b"\x76\x2f\x31\x01",),
    "SVG": (b"<svg", b"<?xml"),
}


def _unidentified(data: bytes) -> ImageError:
    allowed = ", ".join(FORMATS)
    if data.startswith(_MAGIC):
        return ImageError("corrupt", f"begins like one of {allowed}, but its header is broken")
    for name, starts in _FOREIGN.items():
        if data.startswith(starts):
            return ImageError("unsupported_format", f"{name}; accepted are {allowed}")
    if data[4:8] == b"ftyp":
        return ImageError("unsupported_format", f"HEIF, AVIF or video; accepted are {allowed}")
    return ImageError("not_an_image", f"not one of {allowed} by its content")
