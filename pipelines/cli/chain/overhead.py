"""Orchestration overhead: a run's wall time less the time inside the steps' own functions on its critical path.

Interpreter starts and imports count as overhead. What a step waits on purpose (a cool-down) is told apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from pipelines.adapters.orchestrator import DagRun, Task
from pipelines.core.runs import Reference


@dataclass(frozen=True, kw_only=True)
class Overhead:
    """Seconds of one run."""

    run: str
    wall_s: float
    function_s: float
    cool_down_s: float
    num_tasks: int
    """Tasks on the critical path that ran."""
    starting_s: float
    """Between the end of a task and the start of the next one's process: scheduling, the worker, the DAG file."""
    loading_s: float
    """Inside the steps' processes, outside the function: interpreter, imports, keys, the result's publication."""

    @property
    def per_task_s(self) -> float:
        return (self.wall_s - self.cool_down_s - self.function_s) / max(1, self.num_tasks)

    def as_dict(self) -> dict[str, object]:
        return {**asdict(self), "per_task_s": round(self.per_task_s, 3)}


def overhead(run: DagRun, tasks: Sequence[Task], references: Sequence[Reference]) -> Overhead | None:
    """None for a run that has not ended or where no task ran.

    The chains are linear but for the shards of one step: of those, the one that ends last is on the critical path.
    """
    last: dict[str, Task] = {}
    for task in tasks:
        if task.started_at is None or task.ended_at is None or task.state not in ("success", "skipped"):
            continue
        known = last.get(task.task_id)
        if known is None or known.ended_at is None or task.ended_at > known.ended_at:
            last[task.task_id] = task
    if run.started_at is None or run.ended_at is None or not last:
        return None
    made: Mapping[tuple[str, int | None], Reference] = {(one.step, one.shard): one for one in references}
    # A task that was skipped because of one before it ran no step, and counts for nothing.
    path = [(task, found) for task in last.values() if (found := made.get((task.task_id, task.shard)))]
    began = min(run.started_at, *(task.started_at for task in last.values() if task.started_at))
    wall_s = (run.ended_at - began).total_seconds()
    function_s = sum(reference.function_s for _, reference in path)
    process_s = sum(reference.process_s for _, reference in path)
    cool_down_s = _cool_down(made.get(("settle", None)))
    return Overhead(
        run=f"{run.dag_id}/{run.run_id}",
        wall_s=wall_s,
        function_s=function_s,
        cool_down_s=cool_down_s,
        num_tasks=len(path),
        starting_s=wall_s - cool_down_s - process_s,
        loading_s=process_s - function_s,
    )


def _cool_down(settled: Reference | None) -> float:
    """Seconds that the run was told to wait for quiet data; noticing the end of the wait is overhead."""
    return float(settled.facts.get("waited_s", 0.0)) if settled else 0.0
