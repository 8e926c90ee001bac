"""The default embedding and the names of embeddings."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from example_packages import SIDE, write_package
from small_datasets import COLOURS, picture

from pipelines.core.embedding import HogColorV1, view_name
from pipelines.core.errors import RecipeError
from pipelines.core.package_embedding import PackageEmbedder


def _pixels(*pictures: object) -> np.ndarray:
    return np.stack([np.asarray(one) for one in pictures])


def test_rows_have_unit_length_and_do_not_depend_on_their_batch() -> None:
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (600, 32, 32, 3), dtype=np.uint8)
    rows = HogColorV1().embed(pixels)
    assert rows.shape == (600, HogColorV1.dim)
    assert rows.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=1e-5)
    assert (HogColorV1().embed(pixels[300:303]) == rows[300:303]).all()


@pytest.mark.parametrize("value", [0, 1, 127, 255])
def test_a_flat_image_has_an_embedding_too(value: int) -> None:
    row = HogColorV1().embed(np.full((1, 32, 32, 3), value, np.uint8))
    assert np.isfinite(row).all()
    assert np.linalg.norm(row) == pytest.approx(1, rel=1e-5)


def test_no_images_give_no_rows() -> None:
    assert HogColorV1().embed(np.empty((0, 32, 32, 3), np.uint8)).shape == (0, HogColorV1.dim)


def test_a_darker_copy_is_nearer_than_another_picture_and_its_colour_matters() -> None:
    original = picture(1, COLOURS["red"], 32)
    darker = original.point(lambda level: int(level * 0.8))
    other = picture(2, COLOURS["red"], 32)
    blue = picture(1, COLOURS["blue"], 32)
    rows = HogColorV1().embed(_pixels(original, darker, other, blue))
    same, another, recoloured = rows[1:] @ rows[0]
    assert same > 0.98
    assert same > recoloured > another


def test_pixels_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match="expected uint8"):
        HogColorV1().embed(np.zeros((1, 16, 16, 3), np.uint8))


def test_a_view_is_named_by_what_computes_it(tmp_path: Path) -> None:
    weights = tmp_path / "weights.pth"
    weights.write_bytes(b"one")
    first = view_name(f"torchvision:resnet18:{weights}")
    weights.write_bytes(b"two")
    second = view_name(f"torchvision:resnet18:{weights}")
    digest = hashlib.sha256(b"package").hexdigest()
    names = {view_name("hog-color-v1"), first, second, view_name(f"package:{digest}")}
    assert len(names) == 4
    assert all(len(name) <= 36 for name in names)


def test_missing_weights_are_named() -> None:
    with pytest.raises(RecipeError, match=r"/nowhere/weights\.pth is no file"):
        view_name("torchvision:resnet18:/nowhere/weights.pth")


def test_one_of_our_packages_embeds_too(tmp_path: Path) -> None:
    package = write_package(tmp_path / "package")
    embedder = PackageEmbedder(package, "image_embedding_package_x")
    assert (embedder.height, embedder.width, embedder.dim) == (SIDE, SIDE, 3)
    pixels = np.zeros((1, SIDE, SIDE, 3), np.uint8)
    pixels[..., 0] = 200
    np.testing.assert_allclose(embedder.embed(pixels), [[1, 0, 0]], atol=1e-6)
