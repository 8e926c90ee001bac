"""The golden set: stratified, the same every time, and with the encodings that decoders treat apart."""

from __future__ import annotations

import hashlib
import io

import numpy as np
from PIL import Image

from pipelines.core import golden
from pipelines.core.preprocessing import decode


def _photo(seed: int, side: int = 12) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def test_classes_take_turns_and_the_order_of_images_does_not_matter() -> None:
    images = {hashlib.sha256(data).hexdigest(): data for data in map(_photo, range(100))}
    labels = {image_id: int(position < 5) for position, image_id in enumerate(images)}
    orders = (list(images), list(reversed(images)))
    first, second = (
        [case[2] for case in golden.choose(order, [labels[one] for one in order], images.__getitem__)]
        for order in orders
    )
    assert first == second
    assert len(first) == golden.NUM_IMAGES
    rare = {images[image_id] for image_id, label in labels.items() if label == 1}
    assert rare <= set(first[:10])


def test_a_large_file_is_replaced_by_a_smaller_copy() -> None:
    large = _photo(0, side=700)
    assert len(large) > 1 << 20
    ((case, extension, data),) = golden.choose(["a"], [0], lambda _: large)
    assert (case, extension) == ("val-reduced", "jpg")
    assert len(data) < 1 << 20


def test_special_cases_are_what_they_are_called_and_repeat() -> None:
    cases = {case: data for case, _, data in golden.special_cases(_photo(1))}
    modes = {case: decode(data).mode for case, data in cases.items()}
    assert modes == {"exif": "RGB", "cmyk": "CMYK", "16-bit": "I;16", "palette": "P", "alpha": "RGBA"}
    with Image.open(io.BytesIO(cases["exif"])) as image:
        assert image.getexif()[0x0112] == 6
    assert cases == {case: data for case, _, data in golden.special_cases(_photo(1))}
