"""Would a finished run do anything new now? Asked without running it.

A run's pure steps are known by their keys: where every key that its steps would have now is the key that its references
name, nothing that a step depends on (files, recipe, code, versions) has changed.
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


def first_stale_step(settings: Settings, specs: Sequence[StepSpec], past: PastRun, request: RunRequest) -> str | None:
    """The first step that has not run, or would run anew if `past` were asked for `request` now; None: it stands."""
    storage = storage_of(settings)
    results = ResultStore(storage, settings.home / "cache")
    known: dict[str, tuple[StoredResult, ...]] = {}
    for spec in specs:
        mine = sorted((one for one in past.references if one.step == spec.name), key=lambda one: one.shard or 0)
        stored = [results.find(spec.name, one.key) for one in mine]
        if not mine or None in stored:
            return spec.name
        upstream = {step: known[step] for step in spec.upstream}
        if not spec.effect:
            keys = [result_key(settings, storage, spec, request, upstream, one.shard, past.run) for one in mine]
            if keys != [one.key for one in mine]:
                return spec.name
        known[spec.name] = tuple(one for one in stored if one is not None)
    return None
