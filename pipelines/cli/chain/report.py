"""One line a step, as they finish: interval, name, seconds, reused or not, and the fact one wants to know."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipelines.core.results import ResultStore
from pipelines.core.runs import Reference, RunFolder, RunId
from pipelines.core.storage import Storage

Value = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """A finished step of a run, its shards taken together."""

    run: RunId
    interval: str
    """Empty for training."""
    step: str
    seconds: float
    """Wall time of the step, from the start of its first process to the end of its last."""
    function_s: float
    """Inside the step's own function; the longest shard's."""
    peak_rss_bytes: int
    reused: bool
    num_shards: int
    fact: str
    facts: Mapping[str, Any] = field(default_factory=dict)


class Reporter:
    """Collects the reports of a command, and says them as they come (to stderr: stdout is for the summary)."""

    def __init__(self, storage: Storage, results: ResultStore, *, quiet: bool = False) -> None:
        self._storage = storage
        self._results = results
        self._quiet = quiet
        self._began = time.monotonic()
        self.reports: list[StepReport] = []

    def say(self, text: str) -> None:
        if not self._quiet:
            sys.stderr.write(f"{time.monotonic() - self._began:7.1f} s  {text}\n")
            sys.stderr.flush()

    def step_finished(self, run: RunId, interval: str, step: str) -> StepReport | None:
        """Report a step from the references in its run folder; None where it left none (it was skipped)."""
        references = [one for one in RunFolder(self._storage, run).references() if one.step == step]
        if not references:
            return None
        values = [found.value for one in references if (found := self._results.find(step, one.key))]
        report = StepReport(
            run=run,
            interval=interval,
            step=step,
            seconds=_elapsed(references),
            function_s=max(one.function_s for one in references),
            peak_rss_bytes=max(one.peak_rss_bytes for one in references),
            reused=all(one.reused for one in references),
            num_shards=len(references),
            fact=fact(step, values),
            facts=references[0].facts,
        )
        self.reports.append(report)
        how = "reused" if report.reused else ""
        self.say(f"{interval:<10}  {step:<12} {report.seconds:6.1f} s  {how:<6}  {report.fact}".rstrip())
        return report


def _elapsed(references: Sequence[Reference]) -> float:
    from datetime import datetime

    began = min(datetime.fromisoformat(one.started_at) for one in references)
    ended = max(datetime.fromisoformat(one.finished_at) for one in references)
    return (ended - began).total_seconds()


def fact(step: str, values: Sequence[Value]) -> str:
    """What one wants to know of a finished step; empty for a step that says nothing."""
    tell = _FACTS.get(step)
    return tell(values) if tell and values else ""


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number != 1 else f"1 {noun.removesuffix('s')}"


def _plan(values: Sequence[Value]) -> str:
    return f"{_count(values[0]['num_files'], 'files')} in {_count(values[0]['num_shards'], 'shards')}"


def _ingest(values: Sequence[Value]) -> str:
    bad = sum(one["num_quarantined"] for one in values)
    return _count(sum(one["num_images"] for one in values), "images") + (f", {bad:,} quarantined" if bad else "")


def _validate(values: Sequence[Value]) -> str:
    warnings = len(values[0]["findings"])
    return f"{_count(values[0]['num_expectations'], 'expectations')}, {_count(warnings, 'warnings')}"


def _snapshot(values: Sequence[Value]) -> str:
    counts = ", ".join(f"{split} {number:,}" for split, number in values[0]["split_counts"].items() if number)
    return f"{values[0]['snapshot_id'][:12]}: {counts}"


def _train(values: Sequence[Value]) -> str:
    one = values[0]
    return f"val accuracy {one['val_accuracy']:.2%}, {_count(one['epochs_run'], 'epochs')} on {one['device']}"


def _evaluate(values: Sequence[Value]) -> str:
    found = values[0].get("accuracy")
    if found is None:
        return "no labelled image: the accuracy is unknown"
    return f"test accuracy {found['value']:.2%} ({found['low']:.2%} to {found['high']:.2%})"


_FACTS: Mapping[str, Callable[[Sequence[Value]], str]] = {
    "plan": _plan,
    "ingest": _ingest,
    "assemble": lambda values: f"{_count(values[0]['num_images'], 'images')}, {len(values[0]['class_counts'])} classes",
    "validate": _validate,
    "materialize": lambda values: _count(values[0]["num_rows"], "rows"),
    "accept": lambda values: f"head version {values[0]['head_version']}",
    "snapshot": _snapshot,
    "training_set": lambda values: (
        f"{_count(values[0]['num_images'], 'images')}, {values[0]['num_filtered']:,} left out"
    ),
    "prepare": lambda values: f"train {values[0]['num_train']:,}, val {values[0]['num_val']:,}",
    "train": _train,
    "export": lambda values: f"{values[0]['variant']} serves; passed: {', '.join(values[0]['variants'])}",
    "evaluate": _evaluate,
    "compare": lambda values: str(values[0]["reason"] or values[0]["verdict"]),
    "register": lambda values: f"{values[0]['model']} version {values[0]['version']}",
    "gate": lambda values: str(values[0]["verdict"]).replace("_", " "),
    "deploy": lambda values: f"version {values[0]['version']} at {values[0]['url']}",
}
