"""Run folders: what one execution was asked to do and which results its steps made.

`runs/<dag_id>/<run_id>/run.json` is written by the run's first step, anew each time that it starts;
`<step>[-<shard>].json` is each step's reference to its result. Tasks find their inputs here and nowhere else.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, unquote

from pipelines.core.errors import NotFound
from pipelines.core.foreign import ForeignModel
from pipelines.core.recipe import Recipe, from_dict, to_dict
from pipelines.core.results import from_json
from pipelines.core.storage import Storage


@dataclass(frozen=True, kw_only=True)
class RunId:
    """Identity of one execution. Its text is `<dag_id>/<run_id>`, each percent-encoded."""

    dag_id: str
    run_id: str

    def __str__(self) -> str:
        return f"{quote(self.dag_id, safe='')}/{quote(self.run_id, safe='')}"

    @classmethod
    def parse(cls, text: str) -> RunId:
        """Raises NotFound for a text that is no `<dag_id>/<run_id>`."""
        dag_id, slash, run_id = text.partition("/")
        if not slash or not dag_id or not run_id:
            raise NotFound(f"run {text!r}: expected <dag_id>/<run_id>")
        return cls(dag_id=unquote(dag_id), run_id=unquote(run_id))


@dataclass(frozen=True, kw_only=True)
class RunRequest:
    """What a run was asked to do; frozen once its first step has started."""

    recipe: Recipe
    interval: str = ""
    """Ingest: `static`, or the first day of the data interval (YYYY-MM-DD)."""
    as_of: str = ""
    """Training: compose the intervals up to this day only; empty takes all."""
    foreign: ForeignModel | None = None
    """Import: the model."""
    deploy_unmeasured: bool = False
    """Import: a person takes a model whose accuracy nobody knows."""


@dataclass(frozen=True, kw_only=True)
class Reference:
    """Which result a step of this run made, and what it cost."""

    step: str
    shard: int | None = None
    key: str
    digest: str
    reused: bool
    started_at: str
    """UTC, ISO 8601."""
    finished_at: str
    function_s: float
    """Seconds inside the step's own function, imports left out; 0 where its result was reused."""
    process_s: float
    """Seconds from the start of the process to the end of the step."""
    peak_rss_bytes: int = 0
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Small facts for the summary, such as num_images."""


class RunFolder:
    """The references of one run."""

    def __init__(self, storage: Storage, run: RunId) -> None:
        self.storage = storage
        self.run = run
        self.prefix = f"runs/{run}"

    def request(self) -> RunRequest:
        """Raises NotFound before the run's first step."""
        found = self.storage.read_versioned(f"{self.prefix}/run.json")
        if found is None:
            raise NotFound(f"run {self.run}: not started; give its first step --recipe")
        table = json.loads(found[0])
        foreign = table.get("foreign")
        return RunRequest(
            recipe=from_dict(table["recipe"]),
            interval=table["interval"],
            as_of=table["as_of"],
            foreign=from_json(ForeignModel, foreign) if foreign else None,
            deploy_unmeasured=table.get("deploy_unmeasured", False),
        )

    def begin(self, request: RunRequest) -> RunRequest:
        """Start the run: freeze its request, and forget what an earlier attempt made.

        A run that is cleared and started again takes the recipe as it is now, and must not find references of shards
        that its source no longer fills.
        """
        for entry in list(self.storage.list(f"{self.prefix}/")):
            if not entry.key.endswith("/run.json"):
                self.storage.delete(entry.key)
        table = {
            "recipe": to_dict(request.recipe),
            "interval": request.interval,
            "as_of": request.as_of,
            "foreign": dataclasses.asdict(request.foreign) if request.foreign else None,
            "deploy_unmeasured": request.deploy_unmeasured,
        }
        self.storage.write(f"{self.prefix}/run.json", json.dumps(table, indent=1).encode())
        return request

    def record(self, reference: Reference) -> None:
        name = reference.step if reference.shard is None else f"{reference.step}-{reference.shard:05d}"
        self.storage.write(f"{self.prefix}/{name}.json", json.dumps(dataclasses.asdict(reference), indent=1).encode())

    def references(self) -> list[Reference]:
        """Every finished step of the run, in order of their start."""
        found = [
            from_json(Reference, json.loads(self.storage.read(entry.key)))
            for entry in self.storage.list(f"{self.prefix}/")
            if not entry.key.endswith("/run.json")
        ]
        return sorted(found, key=lambda reference: reference.started_at)
