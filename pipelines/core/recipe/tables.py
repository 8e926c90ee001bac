"""Recipes from nested tables and back."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, cast

from pipelines.core.errors import RecipeError
from pipelines.core.recipe.options import build
from pipelines.core.recipe.recipe import Recipe


def from_dict(table: Mapping[str, Any]) -> Recipe:
    """A checked recipe from nested tables. Raises RecipeError naming the first key that is wrong."""
    return cast(Recipe, build(Recipe, "", table))


def to_dict(recipe: Recipe) -> dict[str, Any]:
    return cast("dict[str, Any]", json.loads(json.dumps(dataclasses.asdict(recipe))))


def changes(text: str) -> dict[str, Any]:
    """Dotted keys and their values, as `--set` gives them in JSON. Raises RecipeError."""
    example = "'{\"training.epochs\": 5}'"
    try:
        found = json.loads(text)
    except ValueError as error:
        raise RecipeError(f"--set {text}: no JSON ({error}); write it like {example}") from error
    if not isinstance(found, dict):
        raise RecipeError(f"--set {text}: expected an object, like {example}")
    return found


def override(recipe: Recipe, changes: Mapping[str, Any]) -> Recipe:
    """The recipe with dotted keys replaced, e.g. {'training.epochs': 5}. Raises RecipeError."""
    table = to_dict(recipe)
    for path, value in changes.items():
        section, _, key = path.rpartition(".")
        target = table.get(section) if section else table
        if not isinstance(target, dict):
            raise RecipeError(f"{path}: unknown key")
        target[key] = value
    return from_dict(table)


def form_fields(recipe: Recipe) -> dict[str, dict[str, Any]]:
    """JSON-schema fragments of the options that the trigger form shows, keyed by dotted path."""
    json_types = {int: "integer", float: "number", str: "string", bool: "boolean"}
    fields: dict[str, dict[str, Any]] = {}
    for section in dataclasses.fields(recipe):
        value = getattr(recipe, section.name)
        if not dataclasses.is_dataclass(value):
            continue
        for key in dataclasses.fields(value):
            if not key.metadata.get("form"):
                continue
            default = getattr(value, key.name)
            schema: dict[str, Any] = {
                "default": default,
                "type": json_types[type(default)],
                "description": key.metadata["doc"],
            }
            for word in ("minimum", "maximum"):
                if key.metadata[word] is not None:
                    schema[word] = key.metadata[word]
            if key.metadata["choices"]:
                schema["enum"] = list(key.metadata["choices"])
            fields[f"{section.name}.{key.name}"] = schema
    return fields
