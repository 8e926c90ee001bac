"""What the feature views hold, where their rows lie, and the filters of a recipe. No feature store is imported."""

from __future__ import annotations

import hashlib
import math
import operator
import re
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.core.errors import RecipeError

STATISTICS_VIEW = "image_statistics_v1"
"""View of the image statistics; the suffix moves when what computes them changes."""
STATISTICS: dict[str, str] = {
    "brightness": "float32",
    "contrast": "float32",
    "sharpness": "float32",
    "entropy": "float32",
    "aspect": "float32",
    "size_px": "int64",
    "size_bytes": "int64",
}
"""Statistics by name, with their type in Parquet and in the feature store."""

ROW_KEYS = ("image_id", "event_timestamp", "created_timestamp")
"""Columns of offline rows beside their features: which image, when it was taken, when this was computed."""


@dataclass(frozen=True, kw_only=True)
class EmbeddingView:
    """The view of a recipe's embedding."""

    name: str
    dim: int


HOG_COLOR = EmbeddingView(name="image_embedding_hog_color_v1", dim=128)
"""The default embedding, `hog-color-v1`."""

# PostgreSQL cuts names at 63 bytes; `<project>_<view>` must fit for the longest view name (36).
_PROJECT_LENGTH = 23


def project_of(name: str) -> str:
    """Name of a recipe's Feast project: letters, digits and underscores, at most 23 characters, one for each name."""
    project = name.replace("-", "_")
    if len(project) <= _PROJECT_LENGTH:
        return project
    return f"{project[: _PROJECT_LENGTH - 9]}_{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def view_prefix(name: str, view: str) -> str:
    """Key prefix of a view's offline rows."""
    return f"features/{name}/{view}"


def partition_key(name: str, view: str, interval: str) -> str:
    """Key of the offline rows of one interval."""
    return f"{view_prefix(name, view)}/interval={interval}/part.parquet"


def tombstones_prefix(name: str) -> str:
    """Key prefix of each interval's withdrawn images."""
    return f"features/{name}/tombstones/"


# Feast's entity key, version 3: one join key, a string of 8 bytes, and its value, a string of 64.
_KEY_HEAD = struct.pack("<III", 1, 2, 8) + b"image_id" + struct.pack("<II", 2, 64)


def entity_key(image_id: str) -> bytes:
    """Feast's serialized key of an image."""
    return _KEY_HEAD + image_id.encode()


_OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    "<": operator.lt,
}
_CONDITION = re.compile(r"\s*(\w+)\s*(>=|<=|==|!=|>|<)\s*(\S+)\s*")


@dataclass(frozen=True, kw_only=True)
class Condition:
    """One filter, such as sharpness > 0.01."""

    feature: str
    symbol: str
    value: float

    def holds(self, values: Any) -> Any:
        """Boolean array for an array of the feature's values; a missing value (NaN) never passes."""
        return _OPERATORS[self.symbol](values, self.value) & (values == values)


def conditions(where: Sequence[str]) -> tuple[Condition, ...]:
    """The filters of `features.where`. Raises RecipeError that names the key, the text and what is allowed."""
    found = []
    for text in where:
        match = _CONDITION.fullmatch(text)
        if match is None:
            raise RecipeError(
                f"features.where = {text!r}: expected '<feature> <operator> <number>' with one of "
                f"{', '.join(_OPERATORS)}, such as 'sharpness > 0.01'"
            )
        feature, symbol, number = match.groups()
        check_feature("features.where", feature)
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise RecipeError(f"features.where = {text!r}: {number!r} is no number")
        found.append(Condition(feature=feature, symbol=symbol, value=value))
    return tuple(found)


def check_feature(key: str, feature: str) -> None:
    """Raises RecipeError that names the recipe key where there is no such feature."""
    if feature not in STATISTICS:
        raise RecipeError(f"{key}: no feature {feature!r}; there are {', '.join(STATISTICS)}")
