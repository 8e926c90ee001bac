"""Every step by name: what it reads, what makes its key, and how it is wired to its adapters.

This is the composition root of the steps. A wiring function imports its step and adapters when called, so that starting
one step does not pay for another's libraries.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pipelines.core.recipe import Recipe
from pipelines.core.results import ResultStore, StoredResult
from pipelines.core.runs import RunId, RunRequest
from pipelines.core.storage import Storage
from pipelines.settings import Settings

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class StepContext:
    """What a wiring function gets."""

    settings: Settings
    storage: Storage
    results: ResultStore
    run: RunId
    request: RunRequest
    actor: str
    """Who runs it; see core.actors."""
    upstream: Mapping[str, tuple[StoredResult, ...]]
    """Results of the upstream steps; a mapped one has one per shard, in order."""
    shard: int | None
    out: Path
    """Empty local folder; what the step leaves here becomes the result's files."""
    facts: dict[str, Any] = field(default_factory=dict)
    """Small facts for the summary and the tracking server; not part of the result's digest."""
    spent: list[Path] = field(default_factory=list)
    """Folders that nobody needs once the result is published; they are then removed."""

    @property
    def recipe(self) -> Recipe:
        return self.request.recipe

    def one(self, step: str) -> StoredResult:
        (result,) = self.upstream[step]
        return result

    def value(self, step: str, cls: type[T]) -> T:
        return self.one(step).load(cls)


@dataclass(frozen=True, kw_only=True)
class StepSpec:
    """A step's place in the house."""

    name: str
    wire: Callable[[StepContext], Any]
    """Calls the step's function with adapters built from settings; returns a value of `pipelines.core.values`."""
    roots: tuple[str, ...]
    """Modules whose import closure is the step's code: the step's and its adapters'."""
    upstream: tuple[str, ...] = ()
    sections: tuple[str, ...] = ()
    """Recipe sections that are part of the key."""
    effect: bool = False
    """Looks at the world and converges; never skipped by key."""
    mapped: bool = False
    """Runs once a shard."""
    world: Callable[[Settings, Storage, RunRequest], str] | None = None
    """Digest of outside state that a pure step reads, such as the dataset's head."""
    reusable: Callable[[Mapping[str, Any]], bool] | None = None
    """Whether a finished value may stand for equal work later; without, it always may."""
    compute: bool = False
    """Its result depends on device kind and thread count."""
    first: bool = False
    """Freezes the run's request."""
