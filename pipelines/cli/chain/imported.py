"""`darkroom import-model`: the steps of an import, one after the other in this process, and what came of them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pipelines.cli.chain import graph
from pipelines.cli.chain.report import Reporter
from pipelines.cli.execute import execute, storage_of
from pipelines.cli.registry import StepSpec
from pipelines.cli.wiring import IMPORT_STEPS
from pipelines.core.results import ResultStore, StoredResult
from pipelines.core.runs import RunFolder, RunId, RunRequest
from pipelines.core.values import (
    Assembled,
    Compared,
    Deployed,
    Evaluated,
    Interval,
    Registered,
    Snapshotted,
)
from pipelines.settings import Settings

_NEEDS_PLATFORM = "compare"
"""The first step that asks a database."""
_AFTER_REGISTRATION = ("gate", "build_bento", "deploy")


@dataclass(frozen=True, kw_only=True)
class Imported:
    """What an import came to."""

    registered: Registered
    compared: Compared
    accuracy: Interval | None
    """On the labelled test images; None where there are none."""
    num_images: int
    """Test images measured."""
    understood: tuple[str, ...]
    """How the model was taken: what was found in it, and what was assumed."""
    left_out: tuple[str, ...]
    """What a person should know of the data."""
    deployed: Deployed | None

    def as_json(self) -> dict[str, Any]:
        accuracy = self.accuracy
        return {
            "model": self.registered.model,
            "version": self.registered.version,
            "package_digest": self.registered.package_digest,
            "accuracy": accuracy.value if accuracy else None,
            "accuracy_low": accuracy.low if accuracy else None,
            "accuracy_high": accuracy.high if accuracy else None,
            "num_images": self.num_images,
            "verdict": self.compared.verdict,
            "reason": self.compared.reason,
            "deployed": self.deployed is not None,
            "url": self.deployed.url if self.deployed else None,
            "understood": list(self.understood),
            "left_out": list(self.left_out),
        }


def run_import(
    settings: Settings, request: RunRequest, reporter: Reporter, *, deploy: bool, start_platform: Callable[[], None]
) -> Imported:
    """Every step, reusing what is finished.

    The platform is started once it is needed, after the model was understood and measured: what a person has to mend is
    told before a minute is spent on that.

    Raises what a step raises: UserError for a model or data to mend, GateRejected (the version stays registered),
    DeploymentFailed.
    """
    name = request.recipe.name
    run = RunId(dag_id=graph.import_dag(name), run_id=f"import__{datetime.now(UTC):%Y-%m-%dT%H:%M:%S.%f}")
    for step in graph.IMPORT:
        if deploy or step not in _AFTER_REGISTRATION:
            if step == _NEEDS_PLATFORM:
                start_platform()
            _execute(settings, IMPORT_STEPS[step], run, request)
            reporter.step_finished(run, "", step)
            if step == "export":
                _tell(settings, run, reporter)
    return _outcome(settings, run)


def _execute(settings: Settings, spec: StepSpec, run: RunId, request: RunRequest) -> None:
    """A mapped step runs once for each shard that was planned."""
    shards: Sequence[int | None] = [None]
    if spec.mapped:
        shards = range(_results(settings, run)["plan"].value["num_shards"])
    for shard in shards:
        execute(settings, spec, run, shard=shard, request=request if spec.first else None, started=time.time())


def _tell(settings: Settings, run: RunId, reporter: Reporter) -> None:
    """How the model was understood, as soon as it was: before minutes are spent on a wrong guess."""
    for note in _understood(_results(settings, run)["export"]):
        reporter.say(f"  {note}")


def _understood(exported: StoredResult) -> list[str]:
    notes: list[str] = json.loads((exported.folder / "notes.json").read_text())
    return notes


def _results(settings: Settings, run: RunId) -> dict[str, StoredResult]:
    """By step; of a mapped one any shard's."""
    storage = storage_of(settings)
    results = ResultStore(storage, settings.home / "cache")
    references = RunFolder(storage, run).references()
    return {one.step: found for one in references if (found := results.find(one.step, one.key))}


def _outcome(settings: Settings, run: RunId) -> Imported:
    found = _results(settings, run)
    evaluated = found["evaluate"].value
    measured = found["evaluate"].load(Evaluated) if "accuracy" in evaluated else None
    snapshot = found["snapshot"].load(Snapshotted)
    left_out = [*found["assemble"].load(Assembled).notes, *snapshot.warnings]
    if measured and measured.num_images < snapshot.split_counts["test"]:
        unknown = snapshot.split_counts["test"] - measured.num_images
        left_out.append(f"{unknown:,} test images are of no class that the model knows")
    return Imported(
        registered=found["register"].load(Registered),
        compared=found["compare"].load(Compared),
        accuracy=measured.accuracy if measured else None,
        num_images=measured.num_images if measured else 0,
        understood=tuple(_understood(found["export"])),
        left_out=tuple(left_out),
        deployed=found["deploy"].load(Deployed) if "deploy" in found else None,
    )
