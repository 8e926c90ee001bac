"""What `darkroom run` says at its end, to a person or a program."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pipelines.cli.chain.freshness import result_of
from pipelines.cli.chain.overhead import Overhead
from pipelines.cli.chain.probe import Answer
from pipelines.cli.chain.report import StepReport
from pipelines.cli.past_runs import PastRun
from pipelines.core.results import ResultStore
from pipelines.core.values import Assembled, Deployed, Evaluated, Finding, Snapshotted, Validated
from pipelines.settings import Settings


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Everything that the summary tells."""

    name: str
    ingests: Sequence[PastRun]
    training: PastRun
    evaluated: Evaluated
    deployed: Deployed
    snapshot: Snapshotted
    findings: Sequence[tuple[str, Finding]]
    """Interval and what validation warned of."""
    notes: Sequence[str]
    """What ingest said of single files."""
    answers: Sequence[Answer]
    curl: str
    steps: Sequence[StepReport]
    """Steps that this command saw finish; none where all was done before."""
    overheads: Sequence[Overhead]
    total_s: float
    up_s: float
    """Of it, until the platform was ready."""
    memory_bytes: int

    @property
    def serving(self) -> tuple[int, str]:
        """Version and package digest that the gateway answered with, which a person may have chosen."""
        if not self.answers:
            return self.deployed.version, self.deployed.package_digest
        return int(self.answers[-1].model_version), self.answers[-1].package_digest

    @property
    def correct(self) -> int:
        return sum(one.predicted == one.label for one in self.answers)

    @property
    def warnings(self) -> list[str]:
        found = [
            f"{interval}: {one.expectation}: {one.observed} (threshold {one.threshold})"
            + (f", such as {one.examples[0]}" if one.examples else "")
            for interval, one in self.findings
        ]
        return [*self.notes, *found, *self.snapshot.warnings]

    @property
    def overhead_per_task_s(self) -> float | None:
        """Over all runs that this command followed."""
        tasks = sum(one.num_tasks for one in self.overheads)
        spent = sum(one.per_task_s * one.num_tasks for one in self.overheads)
        return spent / tasks if tasks else None


def findings_of(results: ResultStore, ingests: Sequence[PastRun]) -> list[tuple[str, Finding]]:
    found = [(one.request.interval, result_of(results, one, "validate").load(Validated)) for one in ingests]
    return [(interval, finding) for interval, validated in found for finding in validated.findings]


def notes_of(results: ResultStore, ingests: Sequence[PastRun]) -> list[str]:
    """What ingest has to say of single files and folders: empty classes, missing and unreadable files, by name."""
    found = [(one.request.interval, result_of(results, one, "assemble").load(Assembled)) for one in ingests]
    return [f"{interval}: {note}" for interval, assembled in found for note in assembled.notes]


def places(settings: Settings, name: str, *, with_airflow: bool) -> dict[str, str]:
    """Where to look."""
    found = {"endpoint": f"{settings.gateway_url}/v1/models/{name}/classify"}
    if with_airflow:
        found["airflow"] = f"http://127.0.0.1:{settings.port('airflow')}"
        found["airflow_user"] = "admin"
        found["airflow_password_file"] = str(settings.secrets / "airflow-admin")
    found["mlflow"] = f"http://127.0.0.1:{settings.port('mlflow')}"
    found["data_docs"] = f"{settings.store_uri.rstrip('/')}/docs/{name}/index.html"
    return found


def as_json(outcome: Outcome, where: Mapping[str, str]) -> dict[str, Any]:
    """The summary for programs."""
    accuracy = outcome.evaluated.accuracy
    version, package_digest = outcome.serving
    return {
        "name": outcome.name,
        "version": version,
        "package_digest": package_digest,
        "trained_version": outcome.deployed.version,
        "snapshot_id": outcome.snapshot.snapshot_id,
        "accuracy": accuracy.value,
        "accuracy_low": accuracy.low,
        "accuracy_high": accuracy.high,
        "num_test_images": outcome.evaluated.num_images,
        "num_images": outcome.snapshot.num_images,
        "intervals": [one.request.interval for one in outcome.ingests],
        "training_run": str(outcome.training.run),
        "held_out": [asdict(one) for one in outcome.answers],
        "held_out_correct": outcome.correct,
        "steps": [
            {
                "run": str(one.run),
                "interval": one.interval,
                "step": one.step,
                "seconds": round(one.seconds, 3),
                "function_s": round(one.function_s, 3),
                "import_s": one.facts.get("import_s", 0.0),
                "peak_rss_bytes": one.peak_rss_bytes,
                "reused": one.reused,
                "num_shards": one.num_shards,
                "fact": one.fact,
            }
            for one in outcome.steps
        ],
        "overhead_per_task_s": outcome.overhead_per_task_s,
        "overheads": [one.as_dict() for one in outcome.overheads],
        "total_s": round(outcome.total_s, 1),
        "up_s": round(outcome.up_s, 1),
        "platform_memory_bytes": outcome.memory_bytes,
        "warnings": outcome.warnings,
        "curl": outcome.curl,
        **where,
    }


def render(outcome: Outcome, where: Mapping[str, str]) -> str:
    """The summary for people."""
    accuracy = outcome.evaluated.accuracy
    version, package_digest = outcome.serving
    trained = outcome.deployed.version
    lines = ["", f"{outcome.name} version {version} serves  (package {package_digest[:12]})", ""]
    if version != trained:
        lines += [
            f"  trained    version {trained}, from this data, recipe and code; another was put in its place since,",
            f"             and `darkroom promote {trained} --model {outcome.name}` makes it serve. Its accuracy:",
        ]
    lines += [
        f"  accuracy   {accuracy.value:.2%} on {outcome.evaluated.num_images:,} test images "
        f"({accuracy.low:.2%} to {accuracy.high:.2%})",
        f"  held out   {outcome.correct} of {len(outcome.answers)} images right through the gateway, "
        f"{_median([one.milliseconds for one in outcome.answers]):.1f} ms each",
        f"  time       {outcome.total_s:.1f} s in all, {outcome.up_s:.1f} s of it until the platform was ready",
        f"  memory     {outcome.memory_bytes / 1e9:.2f} GB (PSS) for the platform at rest",
    ]
    if outcome.overhead_per_task_s is not None:
        lines.append(f"  overhead   {outcome.overhead_per_task_s:.2f} s a task of orchestration")
    lines += ["", *_steps(outcome.steps)]
    if outcome.warnings:
        lines += ["", "  warnings", *(f"    {text}" for text in outcome.warnings)]
    lines += ["", "  where to look"]
    if "airflow" in where:
        lines.append(f"    Airflow    {where['airflow']}  (user admin, password in {where['airflow_password_file']})")
    lines += [
        f"    MLflow     {where['mlflow']}",
        f"    data docs  {where['data_docs']}",
        f"    endpoint   {where['endpoint']}",
        "",
        f"  {outcome.curl}",
        "",
    ]
    return "\n".join(lines)


def _steps(steps: Sequence[StepReport]) -> list[str]:
    """Seconds by step, intervals added up."""
    if not steps:
        return ["  steps      all done before; nothing ran"]
    seconds: dict[str, list[StepReport]] = {}
    for one in steps:
        seconds.setdefault(one.step, []).append(one)
    lines = ["  step            runs   seconds   of it in the step's function"]
    for step, reports in seconds.items():
        wall, inside = sum(one.seconds for one in reports), sum(one.function_s for one in reports)
        reused = sum(one.reused for one in reports)
        note = f"   {reused} reused" if reused else ""
        lines.append(f"  {step:<14} {len(reports):>5} {wall:>9.1f} {inside:>9.1f}{note}")
    return lines


def _median(numbers: Sequence[float]) -> float:
    return sorted(numbers)[len(numbers) // 2] if numbers else 0.0
