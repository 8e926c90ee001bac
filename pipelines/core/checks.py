"""Expectations of data as values: what is checked on which table, and what came of it.

The step says what should hold, the adapter asks Great Expectations, the data docs show both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import pyarrow as pa

Argument = str | float | int | bool | None | Sequence[str] | Sequence[float]

SUBJECT = "subject"
"""Column of a summary table that says what a row is about, such as a class name."""
EXAMPLES = "examples"
"""Column of a table that names files to look at: source URIs, one a line."""
MAX_EXAMPLES = 5


@dataclass(frozen=True, kw_only=True)
class Check:
    """One expectation."""

    kind: str
    """Its name in Great Expectations, such as `expect_column_values_to_be_between`."""
    title: str
    """What holds where it is met, for people."""
    threshold: str
    """What is allowed, for people."""
    arguments: Mapping[str, Argument]
    """The expectation's arguments, such as `column` and `min_value`."""
    blocking: bool = True
    """Stops the run where it is not met; otherwise it is a warning."""
    observed: str = ""
    """What was found, in words; rows that fail are told by the engine beside it."""


@dataclass(frozen=True, kw_only=True)
class Suite:
    """Expectations of one table. Columns SUBJECT and EXAMPLES are for the report and are not checked themselves."""

    name: str
    title: str
    table: pa.Table
    checks: tuple[Check, ...]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of one check."""

    suite: str
    check: Check
    met: bool
    observed: str
    examples: tuple[str, ...] = ()
    """Source URIs, at most MAX_EXAMPLES."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """What came of all."""

    outcomes: tuple[Outcome, ...]
    engine: str
    """Name and version of what checked."""
    raw: Sequence[Mapping[str, object]] = field(default=())
    """The engine's own results, as JSON, one a suite."""

    def unmet(self, *, blocking: bool) -> tuple[Outcome, ...]:
        return tuple(one for one in self.outcomes if not one.met and one.check.blocking == blocking)


class Expectations(Protocol):
    """An engine that checks suites."""

    def check(self, suites: Sequence[Suite]) -> Report: ...
