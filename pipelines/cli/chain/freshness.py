"""Would a finished run do anything new now? Asked without running it.

A run's steps are known by their keys: where every key that they would have now is the one that their references name,
nothing that a step depends on (recipe, code, versions, what came before) has changed.
"""

from __future__ import annotations

from collections.abc import Sequence

from pipelines.cli.execute import result_key, storage_of
from pipelines.cli.past_runs import PastRun
from pipelines.cli.registry import StepSpec
from pipelines.core.results import ResultStore, StoredResult
from pipelines.core.runs import RunRequest
from pipelines.settings import Settings


def result_of(results: ResultStore, past: PastRun, step: str) -> StoredResult:
    """The result that the reference of a finished step names."""
    reference = next(one for one in past.references if one.step == step)
    found = results.find(step, reference.key)
    assert found is not None, "a run that stands has every result"
    return found


def first_stale_step(
    settings: Settings, specs: Sequence[StepSpec], past: PastRun, request: RunRequest, *, world: bool
) -> str | None:
    """The first step that has not run, or would run anew if `past` were asked for `request` now; None: it stands.

    Without `world`, steps that read outside state are judged by their recipe sections only: an accepted interval was
    validated against the head of its time, and need not be again whenever the head moves.
    """
    storage = storage_of(settings)
    results = ResultStore(storage, settings.home / "cache")
    known: dict[str, tuple[StoredResult, ...]] = {}
    for spec in specs:
        mine = sorted((one for one in past.references if one.step == spec.name), key=lambda one: one.shard or 0)
        stored = [results.find(spec.name, one.key) for one in mine]
        if not mine or None in stored:
            return spec.name
        upstream = {step: known[step] for step in spec.upstream}
        if spec.world is None or world:
            keys = [result_key(settings, storage, spec, request, upstream, one.shard, past.run) for one in mine]
            if keys != [one.key for one in mine]:
                return spec.name
        elif any(getattr(past.request.recipe, name) != getattr(request.recipe, name) for name in spec.sections):
            return spec.name
        known[spec.name] = tuple(one for one in stored if one is not None)
    return None
