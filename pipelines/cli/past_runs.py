"""Runs that have begun, as their folders tell."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pipelines.core.errors import NotFound, RecipeError
from pipelines.core.runs import Reference, RunFolder, RunId, RunRequest
from pipelines.core.storage import Storage


@dataclass(frozen=True, kw_only=True)
class PastRun:
    """A run folder, and what it was asked to do."""

    run: RunId
    request: RunRequest
    references: Sequence[Reference]

    def finished(self, step: str) -> bool:
        return any(one.step == step for one in self.references)

    @property
    def ended_at(self) -> str:
        return max((one.finished_at for one in self.references), default="")


def past_runs(storage: Storage, dag_id: str) -> list[PastRun]:
    """Runs of a DAG that have begun, the latest finished last; without those of a recipe that is refused by now."""
    found: list[PastRun] = []
    for name in _run_names(storage, dag_id):
        folder = RunFolder(storage, RunId.parse(name))
        try:
            found.append(PastRun(run=folder.run, request=folder.request(), references=folder.references()))
        except (NotFound, RecipeError):
            continue
    return sorted(found, key=lambda one: one.ended_at)


def _run_names(storage: Storage, dag_id: str) -> Iterator[str]:
    prefix = f"runs/{RunId(dag_id=dag_id, run_id='x')}".removesuffix("x")
    for entry in storage.list(prefix):
        if entry.key.endswith("/run.json"):
            yield entry.key.removeprefix("runs/").removesuffix("/run.json")


def trained_by(storage: Storage, run: RunId, request: RunRequest, moved_at: str) -> str:
    """The run that trained and deployed what the head holds since `moved_at`, by the same recipe; empty if none did.

    Events that arrive while a run trains start one more run; this tells that the run has seen their data already.
    """
    for past in reversed(past_runs(storage, run.dag_id)):
        composed = next((one for one in past.references if one.step == "snapshot"), None)
        if past.run == run or composed is None or not past.finished("deploy"):
            continue
        if past.request == request and composed.started_at > moved_at:
            return str(past.run)
    return ""
