"""Crops from encoded images: the same part of the picture as a careful decoder would cut, however it is stored."""

from __future__ import annotations

import io

import numpy as np
import photographs
import pytest
from PIL import Image

from pipelines.core.errors import ImageError
from pipelines.core.preprocessing import decode, measure
from pipelines.training.loading import decoding
from pipelines.training.loading.decoding import decode_crop

WHOLE = (0.0, 0.0, 1.0, 1.0)


def _reference(data: bytes, box: tuple[float, float, float, float], height: int, width: int) -> np.ndarray:
    image = decode(data).image
    left, top = box[1] * image.width, box[0] * image.height
    corners = (left, top, left + box[3] * image.width, top + box[2] * image.height)
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR, box=corners), np.int16)


@pytest.mark.parametrize("box", [WHOLE, (0.25, 0.5, 0.5, 0.5), (0.0, 0.1, 0.9, 0.3)])
@pytest.mark.parametrize("size", [(80, 100), (241, 317), (640, 480)])
def test_a_crop_is_what_pillow_would_cut(size: tuple[int, int], box: tuple[float, float, float, float]) -> None:
    data = photographs.photograph(3, size)
    found = decode_crop(data, size, box, False, 48, 64)
    assert found.shape == (48, 64, 3)
    assert found.dtype == np.uint8
    assert np.abs(found - _reference(data, box, 48, 64)).mean() < 2


def test_a_mirrored_crop_is_mirrored() -> None:
    data = photographs.photograph(1)
    crops = [decode_crop(data, measure(data), WHOLE, mirrored, 32, 32) for mirrored in (False, True)]
    assert (crops[0][:, ::-1] == crops[1]).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_crops_are_cut_from_the_picture_as_a_person_sees_it(orientation: int) -> None:
    data = photographs.photograph(2, (96, 128), orientation)
    size = measure(data)
    assert size == ((96, 128) if orientation < 5 else (128, 96))
    box = (0.0, 0.0, 0.5, 0.75)
    found = decode_crop(data, size, box, False, 32, 32)
    assert np.abs(found - _reference(data, box, 32, 32)).mean() < 2


@pytest.mark.parametrize("stored_as", ["PNG", "CMYK", "grey", "without simplejpeg"])
def test_other_files_are_decoded_too(stored_as: str, monkeypatch: pytest.MonkeyPatch) -> None:
    image = decode(photographs.photograph(4, (80, 60))).image
    file = io.BytesIO()
    mode = {"CMYK": "CMYK", "grey": "L"}.get(stored_as, "RGB")
    image.convert(mode).save(file, "PNG" if stored_as == "PNG" else "JPEG", quality=95)
    if stored_as == "without simplejpeg":
        monkeypatch.setattr(decoding, "_decode_jpeg", lambda: None)
    data = file.getvalue()
    found = decode_crop(data, (80, 60), (0.0, 0.0, 0.5, 1.0), False, 24, 24)
    assert np.abs(found - _reference(data, (0.0, 0.0, 0.5, 1.0), 24, 24)).mean() < 2


def test_no_detail_is_lost_that_the_crop_could_show() -> None:
    """A chessboard whose fields are one pixel of the crop: a decoder that reduces too far would show grey."""
    board = np.kron(np.indices((32, 32)).sum(axis=0) % 2, np.ones((8, 8))).astype(np.uint8) * 255
    file = io.BytesIO()
    Image.fromarray(board).convert("RGB").save(file, "JPEG", quality=95)
    found = decode_crop(file.getvalue(), (256, 256), (0.0, 0.0, 0.5, 0.5), False, 16, 16)
    assert set(np.unique(found // 16)) <= {0, 15}
    assert found.std() > 100


@pytest.mark.parametrize("damage", ["cut", "rot", "empty"])
def test_damage_is_an_image_error(damage: str) -> None:
    data = photographs.photograph(5)
    broken = {"cut": data[: len(data) // 2], "rot": b"\xff\xd8\xff" + b"rot" * 50, "empty": b""}[damage]
    with pytest.raises(ImageError):
        decode_crop(broken, measure(data), WHOLE, False, 32, 32)
