"""How the images of a split are stored for training and evaluation: what a recipe asks for.

Evaluation pixels are always those of `core.preprocessing`, whatever the recipe says about loading.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from pipelines.core import embedding
from pipelines.core.pixelset import Pixels
from pipelines.core.preprocessing import PreprocessingSpec, decode, resize, spec_of
from pipelines.core.recipe import Recipe

_GB = 1e9

_WHOLE_FILTER = "lanczos"
"""What is cut from whole images is resampled a second time. After a bilinear reduction crops of photographs (128 px,
margin 1.5) keep 0.72 of the contrast of neighbouring pixels that evaluation sees, after this one 0.95; and a network
that has learned from softer pixels than it is shown loses a point of accuracy."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Encoded as they came; or decoded, by the evaluation's preprocessing or as `whole` images of a larger size."""

    spec: PreprocessingSpec
    """By which decoded pixels are made; for whole images it squashes to the stored size."""
    whole: bool = False
    encoded: bool = False

    def pixels_of(self, data: bytes) -> tuple[Pixels, int, int]:
        """uint8 [H, W, 3] to be stored, and the height and width, px, that the image has. Raises ImageError."""
        decoded = decode(data, at_least=(self.spec.width, self.spec.height))
        return resize(decoded.image, self.spec), decoded.height, decoded.width


def evaluation(recipe: Recipe) -> Layout:
    """By the recipe's `preprocessing`; a head's pixels are those that its embedding was computed from."""
    head = recipe.training.mode == "head"
    return Layout(spec=spec_of(embedding.pixels(recipe.features.embedding) if head else recipe.preprocessing))


def training(recipe: Recipe, num_images: int) -> Layout:
    """'shift' moves evaluation pixels; 'resized' cuts from whole images, none of which a centre crop has taken away."""
    layout = evaluation(recipe)
    if recipe.augmentation.crop == "resized":
        layout = _with_margin(layout.spec, recipe.loading.margin)
    num_bytes = num_images * layout.spec.height * layout.spec.width * 3
    encoded = num_bytes > _encoded_above_gb(recipe) * _GB
    return Layout(spec=layout.spec, whole=layout.whole, encoded=encoded)


def choice(recipe: Recipe) -> str:
    """What of the recipe, besides its preprocessing, decides about what is stored: part of the key of `prepare`."""
    if recipe.training.mode == "head":
        return json.dumps({"embedding": embedding.view_name(recipe.features.embedding)})
    margin = recipe.loading.margin if recipe.augmentation.crop == "resized" else 0
    filter_name = _WHOLE_FILTER if margin else ""
    return json.dumps({"margin": margin, "filter": filter_name, "encoded_above_gb": _encoded_above_gb(recipe)})


def _encoded_above_gb(recipe: Recipe) -> float:
    if recipe.loading.strategy == "stream":
        return -1.0
    return recipe.loading.max_decoded_gb if recipe.loading.strategy == "auto" else float("inf")


def _with_margin(spec: PreprocessingSpec, margin: float) -> Layout:
    height, width = round(spec.height * margin), round(spec.width * margin)
    larger = PreprocessingSpec(height=height, width=width, fit="squash", filter=_WHOLE_FILTER)
    return Layout(spec=larger, whole=True)
