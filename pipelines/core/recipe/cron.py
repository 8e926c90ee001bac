"""Cron expressions, read as strictly as Airflow does: what passes here is one that its scheduler finds a next time for.

Airflow's own parser is not imported: recipes are read where there is none. A bad one would otherwise take down the DAG
file that draws every recipe's graph.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from pipelines.core.errors import RecipeError

PRESETS = ("@hourly", "@daily", "@weekly", "@monthly", "@quarterly", "@yearly")
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_WEEKDAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_LONGEST = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
"""Days of each month."""
_ITEM = re.compile(r"(?:\*|([a-z]{3}|[0-9]{1,2})(?:-([a-z]{3}|[0-9]{1,2}))?)(?:/([0-9]{1,2}))?")


@dataclass(frozen=True, kw_only=True)
class _Field:
    name: str
    least: int
    most: int
    names: tuple[str, ...] = ()


_FIELDS = (
    _Field(name="minute", least=0, most=59),
    _Field(name="hour", least=0, most=23),
    _Field(name="day of the month", least=1, most=31),
    _Field(name="month", least=1, most=12, names=_MONTHS),
    _Field(name="weekday", least=0, most=7, names=_WEEKDAYS),
)


def check(key: str, text: str) -> None:
    """Raises RecipeError that names the recipe key, the text, and what is wrong with which field."""
    if text in PRESETS:
        return
    fields = text.lower().split()
    try:
        if len(fields) != len(_FIELDS):
            raise ValueError(f"{len(fields)} fields")
        _, _, days, months, weekdays = (_values(*pair) for pair in zip(_FIELDS, fields, strict=True))
        # With a weekday the day of the month is one of two ways to be due.
        if not _restricts(weekdays) and not any(day <= _LONGEST[month - 1] for day in days for month in months):
            raise ValueError("a day that none of its months has")
    except ValueError as error:
        raise RecipeError(
            f"{key} = {text!r}: {error}; expected five fields (minute, hour, day of the month, month, weekday), each "
            f"'*', a number, a range or a list, such as '0 3 * * 0' or '*/15 8-18 * * mon-fri', or one of "
            f"{', '.join(PRESETS)}"
        ) from error


def _restricts(weekdays: set[int]) -> bool:
    return len({day % 7 for day in weekdays}) < 7


def _values(field: _Field, text: str) -> set[int]:
    """The numbers that a field stands for. Raises ValueError."""
    found: set[int] = set()
    for item in text.split(","):
        match = _ITEM.fullmatch(item)
        if match is None:
            raise ValueError(f"{item!r} as {field.name}")
        first, last, step = match.groups()
        start = field.least if first is None else _number(field, first)
        end = _number(field, last) if last else start if first and not step else field.most
        if step and not 1 <= int(step) <= field.most:
            raise ValueError(f"a step of {step} as {field.name}")
        span = (
            [*range(start, end + 1)] if start <= end else [*range(start, field.most + 1), *range(field.least, end + 1)]
        )
        found.update(span[:: int(step or 1)])
    return found


def _number(field: _Field, text: str) -> int:
    if text in field.names:
        return field.names.index(text) + field.least
    if not text.isdigit() or not field.least <= int(text) <= field.most:
        raise ValueError(f"{text!r} as {field.name}, which goes from {field.least} to {field.most}")
    return int(text)
