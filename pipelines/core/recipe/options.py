"""A recipe key, declared once: default, check, documentation and field of the trigger form."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from dataclasses import field
from typing import Any, cast

from pipelines.core.errors import RecipeError


def option(
    default: Any,
    doc: str,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    choices: tuple[str, ...] = (),
    form: bool = False,
) -> Any:
    """A recipe key: its default, its meaning, what is allowed, and whether the trigger form shows it."""
    metadata = {"doc": doc, "minimum": minimum, "maximum": maximum, "choices": choices, "form": form}
    return field(default=default, metadata=metadata)


def build(cls: type[Any], where: str, table: Any) -> Any:
    if not isinstance(table, Mapping):
        raise RecipeError(f"{where or 'recipe'}: expected a table, found {table!r}")
    hints = typing.get_type_hints(cls)
    keys = {key.name: key for key in dataclasses.fields(cls)}
    values: dict[str, Any] = {}
    for name, value in table.items():
        path = f"{where}.{name}" if where else name
        if name not in keys:
            raise RecipeError(f"{path}: unknown key; allowed here: {', '.join(sorted(keys))}")
        if dataclasses.is_dataclass(hints[name]):
            values[name] = build(cast("type[Any]", hints[name]), path, value)
        else:
            values[name] = _check(path, keys[name], hints[name], value)
    missing = [name for name, key in keys.items() if name not in values and _required(key)]
    if missing:
        raise RecipeError(f"{where or 'recipe'}: missing key {', '.join(missing)}")
    return cls(**values)


def _required(key: dataclasses.Field[Any]) -> bool:
    return key.default is dataclasses.MISSING and key.default_factory is dataclasses.MISSING


def _check(where: str, key: dataclasses.Field[Any], hint: Any, value: Any) -> Any:
    """The value in its declared type, or a RecipeError that names the key, the value and what is allowed."""
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if isinstance(hint, types.GenericAlias):
        if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
            raise RecipeError(f"{where} = {value!r}: expected a list of strings")
        return tuple(value)
    if not isinstance(value, hint) or (hint is not bool and isinstance(value, bool)):
        raise RecipeError(f"{where} = {value!r}: expected {hint.__name__}")
    low, high, choices = (key.metadata.get(word) for word in ("minimum", "maximum", "choices"))
    if low is not None and not value >= low:
        raise RecipeError(f"{where} = {value!r}: must be at least {low:g}")
    if high is not None and not value <= high:
        raise RecipeError(f"{where} = {value!r}: must be at most {high:g}")
    if choices and value not in choices:
        raise RecipeError(f"{where} = {value!r}: must be one of {', '.join(choices)}")
    return value
