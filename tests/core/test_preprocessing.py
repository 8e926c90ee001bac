"""Bytes to pixels: every format and mode that is accepted, and a reason for everything that is not."""

from __future__ import annotations

import io
import json
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile
from torchvision.transforms import functional

from pipelines.core.errors import ImageError, IntegrityError, PlatformError
from pipelines.core.preprocessing import MAX_BYTES, PreprocessingSpec, decode, is_turned, measure, preprocess, spec_of
from pipelines.core.recipe import Preprocessing

CROP = PreprocessingSpec(height=16, width=16, fit="crop")
SQUASH = PreprocessingSpec(height=16, width=16, fit="squash")


def encode(image: Image.Image, name: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, name, **options)
    return file.getvalue()


def halves(width: int = 32, height: int = 32) -> Image.Image:
    """Red on the left, blue on the right."""
    image = Image.new("RGB", (width, height), (200, 30, 30))
    image.paste((30, 30, 200), (width // 2, 0, width, height))
    return image


def noise(size: tuple[int, int] = (40, 30), seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


@pytest.mark.parametrize(("name", "options"), [("JPEG", {"quality": 95}), ("PNG", {}), ("WEBP", {}), ("BMP", {})])
def test_accepted_formats(name: str, options: dict[str, object]) -> None:
    decoded = decode(encode(halves(), name, **options))
    assert (decoded.format, decoded.width, decoded.height, decoded.image.mode) == (name, 32, 32, "RGB")
    left = np.asarray(decoded.image)[16, 4]
    assert np.abs(left.astype(int) - [200, 30, 30]).max() < 12


@pytest.mark.parametrize("name", ["GIF", "WEBP", "PNG"])
def test_the_first_frame_of_an_animation(name: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    data = encode(frames[0], name, save_all=True, append_images=frames[1:], lossless=True)
    assert np.abs(np.asarray(decode(data).image)[4, 4].astype(int) - [255, 0, 0]).max() < 5


def test_the_content_decides_and_not_the_name() -> None:
    assert decode(encode(halves(), "PNG") + b"trailing bytes").format == "PNG"


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation: int) -> None:
    upright = noise((24, 16))
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(undo[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    decoded = decode(encode(stored, "PNG", exif=exif))
    assert (decoded.width, decoded.height) == (24, 16)
    assert (np.asarray(decoded.image) == np.asarray(upright)).all()


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("place", ["before the pixels", "after the pixels"])
@pytest.mark.parametrize("kind", ["eXIf", "XMP"])
def test_sizes_are_those_of_the_decoded_image_wherever_a_png_tells_its_orientation(kind: str, place: str) -> None:
    plain = encode(Image.new("RGB", (20, 10)), "PNG")
    if kind == "eXIf":
        exif = Image.Exif()
        exif[0x0112] = 6
        name, content = b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0")
    else:
        name = b"iTXt"
        content = b'XML:com.adobe.xmp\0\0\0\0\0<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    chunk = struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
    cut = plain.index(b"IDAT" if place == "before the pixels" else b"IEND") - 4
    data = plain[:cut] + chunk + plain[cut:]
    decoded = decode(data)
    assert (decoded.height, decoded.width) == (20, 10) == measure(data)
    assert is_turned(data)
    assert measure(plain) == (10, 20)


def test_a_damaged_exif_block_costs_only_the_orientation() -> None:
    data = encode(halves(), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff garbage")
    assert decode(data).width == 32


def test_cmyk() -> None:
    data = encode(halves().convert("CMYK"), "JPEG", quality=95)
    decoded = decode(data)
    assert decoded.mode == "CMYK"
    red, _, blue = np.asarray(decoded.image)[16, 4]
    assert int(red) - int(blue) > 100


def test_sixteen_bits_are_scaled_and_not_clipped() -> None:
    grey = np.linspace(0, 65_535, 32 * 32).reshape(32, 32).astype(np.uint16)
    decoded = decode(encode(Image.fromarray(grey), "PNG"))
    assert decoded.mode.startswith("I")
    assert (np.asarray(decoded.image)[..., 0] == grey >> 8).all()


def test_palette_with_transparency_is_laid_on_white() -> None:
    image = Image.new("P", (8, 8), 0)
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.paste(1, (4, 0, 8, 8))
    pixels = np.asarray(decode(encode(image, "PNG", transparency=0)).image)
    assert pixels[4, 0].tolist() == [255, 255, 255]
    assert pixels[4, 7].tolist() == [0, 0, 255]


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_laid_on_white(mode: str) -> None:
    image = Image.new("RGBA", (8, 8), (0, 0, 0, 0)).convert(mode)
    assert (np.asarray(decode(encode(image, "PNG")).image) == 255).all()


def test_one_bit() -> None:
    assert (np.asarray(decode(encode(Image.new("1", (8, 8), 1), "PNG")).image) == 255).all()


def png_claiming(width: int, height: int) -> bytes:
    """A PNG whose header claims a size; its pixels are not there."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


JPEG = encode(noise((200, 150)), "JPEG")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"hello, I am a text file", "not_an_image"),
        (b"%PDF-1.7 ...", "unsupported_format"),
        (encode(halves(), "TIFF"), "unsupported_format"),
        (encode(halves(), "ICO"), "unsupported_format"),
        (b"\0\0\0\x18ftypavif....", "unsupported_format"),
        (JPEG[: len(JPEG) // 2], "truncated"),
        (JPEG[:30], "truncated"),
        (b"\x89PNG\r\n\x1a\n and then something else", "corrupt"),
        (encode(noise(), "PNG")[:200], "truncated"),
        (png_claiming(6000, 5000), "too_many_pixels"),
        (png_claiming(60_000, 60_000), "too_many_pixels"),
        (png_claiming(0, 5), "corrupt"),
    ],
)
def test_what_is_refused_and_why(data: bytes, reason: str) -> None:
    for function in (decode, lambda data: preprocess(data, CROP)):
        with pytest.raises(ImageError) as caught:
            function(data)
        assert caught.value.reason == reason
        assert caught.value.detail


def test_huge_files_are_refused_unread() -> None:
    with pytest.raises(ImageError) as caught:
        decode(bytes(MAX_BYTES + 1))
    assert caught.value.reason == "too_many_bytes"


SEEDS = [encode(noise(), name) for name in ("JPEG", "PNG", "WEBP", "BMP", "GIF")]


@settings(max_examples=150, deadline=None)
@given(
    seed=st.sampled_from(SEEDS),
    cut=st.floats(0, 1),
    flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), max_size=8),
)
def test_damaged_bytes_raise_image_errors_only(seed: bytes, cut: float, flips: list[tuple[float, int]]) -> None:
    data = bytearray(seed[: int(len(seed) * cut)])
    for place, bits in flips:
        if data:
            data[int(place * len(data))] ^= bits
    reasons = {"empty", "not_an_image", "unsupported_format", "truncated", "corrupt", "too_many_pixels"}
    assert outcome(bytes(data)) in {(16, 16, 3), *reasons}


def outcome(data: bytes) -> object:
    try:
        return preprocess(data, CROP).shape
    except ImageError as error:
        return error.reason


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 90), st.integers(1, 90), st.integers(8, 40), st.integers(8, 40), st.sampled_from(["crop", "squash"])
)
def test_any_size_fits(width: int, height: int, rows: int, columns: int, fit: str) -> None:
    spec = PreprocessingSpec(height=rows, width=columns, fit=fit)
    pixels = preprocess(encode(Image.new("RGB", (width, height), (9, 99, 199)), "PNG"), spec)
    assert pixels.shape == (rows, columns, 3)
    assert pixels.dtype == np.uint8
    assert (pixels == [9, 99, 199]).all()


def test_crop_keeps_the_aspect_and_squash_does_not() -> None:
    image = Image.new("RGB", (64, 16), "white")
    image.paste("black", (24, 0, 40, 16))  # the middle square
    data = encode(image, "PNG")
    assert (preprocess(data, CROP) == 0).all()
    assert (preprocess(data, SQUASH) == 0).mean() == pytest.approx(
        0.125
    )  # 4 columns of 16, less what blends at their edges


@pytest.mark.parametrize("size", [(640, 480), (480, 641), (224, 224), (150, 99), (301, 300)])
@pytest.mark.parametrize("name", ["bilinear", "bicubic"])
def test_resize_and_centre_crop_are_torchvisions_pixel_for_pixel(size: tuple[int, int], name: str) -> None:
    image = noise(size)
    resized = functional.resize(image, 256, functional.InterpolationMode(name))  # type: ignore[arg-type]
    expected = np.asarray(functional.center_crop(resized, [224, 192]))
    spec = PreprocessingSpec(height=224, width=192, fit="crop", resize=256, filter=name)
    assert (preprocess(encode(image, "PNG"), spec) == expected).all()


def test_a_thin_line_is_resized_in_bounded_memory() -> None:
    spec = PreprocessingSpec(height=224, width=224, fit="crop", resize=256)
    line = Image.new("RGB", (200_000, 2), (9, 99, 199))  # 25,600,000 x 256 px
    assert (preprocess(encode(line, "PNG"), spec) == [9, 99, 199]).all()


def test_large_jpegs_are_decoded_at_a_reduced_size_with_nearly_the_same_pixels() -> None:
    image = Image.linear_gradient("L").resize((1600, 1200)).convert("RGB")
    data = encode(image, "JPEG", quality=95)
    assert decode(data, at_least=(16, 16)).image.size == (200, 150)
    assert decode(data, at_least=(16, 16)).width == 1600
    whole = np.asarray(image.resize((16, 16), Image.Resampling.BILINEAR)).astype(int)
    assert np.abs(preprocess(data, SQUASH) - whole).max() <= 3


def test_too_little_memory_is_not_the_images_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(ImageFile.ImageFile, "load", fail)
    with pytest.raises(PlatformError, match="memory"):
        decode(JPEG)


def test_the_same_bytes_give_the_same_pixels() -> None:
    assert (preprocess(JPEG, CROP) == preprocess(JPEG, CROP)).all()


def test_the_spec_survives_json() -> None:
    spec = spec_of(Preprocessing(height=24, width=48, fit="squash"))
    assert spec.pillow
    assert "resize" not in spec.to_json(), "packages that do not need it keep their digests"
    for one in (spec, PreprocessingSpec(height=224, width=224, fit="crop", resize=256)):
        assert PreprocessingSpec.from_json(json.loads(json.dumps(one.to_json()))) == one


@pytest.mark.parametrize("change", [{"decoder": "other"}, {"version": 99}, {"filter": "magic"}, {"unknown": 1}])
def test_a_spec_that_cannot_be_honoured_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(IntegrityError):
        PreprocessingSpec.from_json({**CROP.to_json(), **change})
