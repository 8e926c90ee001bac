"""Follow DAG runs: a line for every step that finishes, and the failing step's last lines for one that does not."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from pipelines.adapters.orchestrator import DagRun, Orchestrator, Task
from pipelines.cli.chain.report import Reporter
from pipelines.core.errors import DarkroomError, GateRejected, UserError
from pipelines.core.runs import RunId

POLL_S = 0.5
_TAIL_LINES = 15
_EXIT = re.compile(r"AirflowFailException: .*\(exit (\d)\)")
_SAID = re.compile(r"\(exit \d\): (?:darkroom: )?(.*)", re.DOTALL)


@dataclass(kw_only=True)
class Failure:
    """A run that failed, and why."""

    run: DagRun
    step: str
    exit_code: int
    said: str
    tail: list[str]
    url: str

    def error(self) -> DarkroomError:
        """As the error that the step raised: a gate's no is exit code 1, a person's to mend 2, others 3."""
        kind = {1: GateRejected, 2: UserError}.get(self.exit_code, DarkroomError)
        where = f" {self.run.interval}" if self.run.interval else ""
        lines = "" if self.exit_code in (1, 2) else "".join(f"\n    {line}" for line in self.tail)
        return kind(f"{self.run.dag_id}{where}, step {self.step}: {self.said}{lines}\n  log: {self.url}")


@dataclass
class Follower:
    """Watches runs by polling. `failures` collects what failed; nothing is raised for it here."""

    orchestrator: Orchestrator
    reporter: Reporter
    failures: list[Failure] = field(default_factory=list)
    followed: list[DagRun] = field(default_factory=list)
    """Runs seen to their end, in that order."""
    _told: set[tuple[str, str, str, str]] = field(default_factory=set)

    def follow(self, run: DagRun) -> DagRun:
        """Until the run ends; returns it as it ended."""
        while True:
            now = self.orchestrator.run(run.dag_id, run.run_id)
            self._tell(now)
            if not now.active:
                self._ended(now)
                return now
            time.sleep(POLL_S)

    def follow_all(self, dag_id: str, mine: Callable[[DagRun], bool], expected: Iterable[str]) -> None:
        """Until none of the DAG's runs that are `mine` is queued or running; `expected` are intervals to report."""
        watched: dict[str, DagRun] = {}
        while True:
            active = [run for run in self.orchestrator.active_runs(dag_id) if mine(run)]
            names = {run.run_id for run in active}
            for gone in [run for name, run in watched.items() if name not in names]:
                self._finish(gone)
                del watched[gone.run_id]
            for run in active:
                if run.state == "running":
                    watched[run.run_id] = run
                    self._tell(run)
            if not active:
                break
            time.sleep(POLL_S)
        self._catch_up(dag_id, mine, set(expected))

    def _catch_up(self, dag_id: str, mine: Callable[[DagRun], bool], expected: set[str]) -> None:
        """Runs that came and went between two looks."""
        seen = {run.interval for run in self.followed if run.dag_id == dag_id}
        missed = expected - seen
        for run in self.orchestrator.runs(dag_id) if missed else ():
            if run.interval in missed and mine(run):
                missed.discard(run.interval)
                self._finish(run)

    def _finish(self, run: DagRun) -> None:
        now = self.orchestrator.run(run.dag_id, run.run_id)
        self._tell(now)
        self._ended(now)

    def _ended(self, run: DagRun) -> None:
        self.followed.append(run)
        if run.state != "success":
            self.failures.append(self._failure(run))
            self.reporter.say(f"{run.interval:<10}  {self.failures[-1].step:<12} FAILED  {self.failures[-1].said}")

    def _tell(self, run: DagRun) -> None:
        """Say the steps that have finished since the last look."""
        steps: dict[str, list[Task]] = {}
        for task in sorted(self.orchestrator.tasks(run), key=lambda one: str(one.ended_at or "~")):
            steps.setdefault(task.task_id, []).append(task)
        for step, tasks in steps.items():
            key = (run.dag_id, run.run_id, step, max(str(task.ended_at) for task in tasks))
            if key in self._told or not all(task.finished for task in tasks):
                continue
            self._told.add(key)
            if any(task.state == "success" or (task.state == "skipped" and task.started_at) for task in tasks):
                self.reporter.step_finished(RunId(dag_id=run.dag_id, run_id=run.run_id), run.interval, step)

    def _failure(self, run: DagRun) -> Failure:
        tasks = self.orchestrator.tasks(run)
        failed = next((task for task in tasks if task.state == "failed"), None)
        if failed is None:
            said = f"the run is {run.state} though no task failed"
            return Failure(run=run, step="", exit_code=3, said=said, tail=[], url=self.orchestrator.run_url(run))
        lines = self.orchestrator.log(run, failed)
        # One entry of the log, however many lines it has; what comes after it is Airflow's own.
        entry = next((line for line in lines if _EXIT.search(line)), "")
        code, reason = _EXIT.search(entry), _SAID.search(entry)
        kept = [line for line in lines if line and not line.startswith("::") and "Task failed with exc" not in line]
        return Failure(
            run=run,
            step=failed.task_id,
            exit_code=int(code[1]) if code else 3,
            said=reason[1].split("::", 1)[0].strip() if reason else (kept[-1] if kept else "no log"),
            tail=kept[-_TAIL_LINES:],
            url=self.orchestrator.run_url(run, failed),
        )
