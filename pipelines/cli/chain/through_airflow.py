"""The chain through Airflow: start what is missing, attach to what is under way, follow it to its end.

Nothing is remembered between calls. Every call looks at the source, the run folders and Airflow, and does what is left;
so it may be stopped at any point and called again.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

from pipelines.adapters.orchestrator import DagRun, Orchestrator
from pipelines.cli.chain.announcement import announced
from pipelines.cli.chain.base import Chain
from pipelines.cli.chain.follow import POLL_S, Follower
from pipelines.cli.execute import storage_of
from pipelines.cli.past_runs import PastRun
from pipelines.core.datasets import STATIC
from pipelines.core.errors import DarkroomError

MAX_GAP_DAYS = 7
"""Days without data inside one backfill: an empty day costs its `plan`, a backfill more costs half a minute."""


@dataclass
class AirflowChain(Chain):
    """One recipe's two DAGs."""

    orchestrator: Orchestrator

    def __post_init__(self) -> None:
        super().__post_init__()
        self.follower = Follower(self.orchestrator, self.reporter)

    def wait_until_known(self) -> None:
        """Until Airflow has read both DAGs, which takes seconds for a new recipe."""
        for dag_id in (self.ingest_dag, self.train_dag):
            self.orchestrator.wait_for_dag(dag_id)
            self.orchestrator.unpause(dag_id)  # a paused DAG would keep this command waiting for ever

    # --- ingest ----------------------------------------------------------------------------------------------------

    def ingest(self, intervals: Sequence[str]) -> None:
        """Bring every interval of the source into the dataset. Raises what the first failing run failed with."""
        left = self.stale_intervals(intervals)
        if left:
            with announced(storage_of(self.settings), self.recipe.name):
                self._ingest(left)

    def _ingest(self, left: list[str]) -> None:
        while left:
            self._attach(left)
            self._forgive_earlier_runs()
            self._raise_failures()
            left = self.stale_intervals(left)
            if not left:
                return
            for group in _groups(left):
                self._run_group(group)
                self._raise_failures()
            again = self.stale_intervals(left)
            if again == left:
                raise DarkroomError(f"{self.ingest_dag}: {', '.join(again)} ran and is still not what the source holds")
            left = again

    def _attach(self, intervals: Sequence[str]) -> None:
        """Follow what is queued or running for these intervals already."""
        wanted = set(intervals)
        active = {run.interval for run in self.orchestrator.active_runs(self.ingest_dag) if run.interval in wanted}
        if active:
            self.reporter.say(f"attaching to what runs already: {', '.join(sorted(active))}")
            self.follower.follow_all(self.ingest_dag, lambda run: run.interval in active, active)

    def _run_group(self, group: Sequence[str]) -> None:
        if group[0] == STATIC or date.fromisoformat(group[-1]) >= datetime.now(UTC).date():
            for interval in group:  # an interval that is not over yet is no backfill's
                run = self.orchestrator.trigger(self.ingest_dag, {"interval": interval})
                self.follower.follow(run)
            return
        newest: dict[str, DagRun] = {}
        for run in self.orchestrator.runs(self.ingest_dag):
            newest.setdefault(run.interval, run)
        done = [one for one in group if one in newest and _must_be_cleared(newest[one])]
        for interval in done:
            self.orchestrator.clear(newest[interval])
        if len(done) < len(group):
            self._backfill(date.fromisoformat(group[0]), date.fromisoformat(group[-1]))
        wanted = set(group)
        self.follower.follow_all(self.ingest_dag, lambda run: run.interval in wanted, wanted)

    def _backfill(self, first: date, last: date) -> None:
        """Start it, after the one that is running for this DAG: Airflow allows one at a time."""
        while self.orchestrator.backfill(self.ingest_dag, first, last) is None:
            running = self.orchestrator.running_backfill(self.ingest_dag)
            if running is None:
                continue
            if not self._of_backfill(running.first, running.last):
                # All its runs have ended; Airflow would notice within half a minute.
                self.orchestrator.cancel_backfill(running.id)
                continue
            self.reporter.say(f"attaching to the backfill of {running.first} to {running.last}")
            days = {run.interval for run in self._of_backfill(running.first, running.last)}
            self.follower.follow_all(self.ingest_dag, lambda run, days=days: run.interval in days, days)  # type: ignore[misc]

    def _of_backfill(self, first: date, last: date) -> list[DagRun]:
        active = self.orchestrator.active_runs(self.ingest_dag)
        return [run for run in active if first.isoformat() <= run.interval <= last.isoformat()]

    def backfill(self, first: date, last: date) -> list[date]:
        """`darkroom backfill`: run the days without a success, and return them. Raises what the first failure did."""
        days = self.orchestrator.dry_run_backfill(self.ingest_dag, first, last)
        wanted = {(first + timedelta(days=number)).isoformat() for number in range((last - first).days + 1)}
        expected = {day.isoformat() for day in days}
        with announced(storage_of(self.settings), self.recipe.name):
            if days:
                self._backfill(first, last)
            self.follower.follow_all(self.ingest_dag, lambda run: run.interval in wanted, expected)
        self._raise_failures()
        return days

    # --- train -----------------------------------------------------------------------------------------------------

    def train(self) -> PastRun:
        """Follow the run that the accepted data triggered, or start one where nothing is on its way.

        Returns the run whose result stands for the dataset's head. Raises what the run failed with.
        """
        triggered = False
        while True:
            active = self.orchestrator.active_runs(self.train_dag)
            if active:
                run = min(active, key=lambda one: (one.state != "running", str(one.queued_at)))
                self.follower.follow(run)
                continue
            if self.orchestrator.unconsumed_events(self.train_dag):
                time.sleep(POLL_S)  # the scheduler is about to start the run
                continue
            fresh = self.fresh_training()
            if fresh is not None:
                return fresh
            self._forgive_earlier_runs()
            self._raise_failures()
            if triggered:
                raise DarkroomError(
                    f"{self.train_dag}: a run has ended well, but does not stand for the dataset's head"
                )
            self.orchestrator.trigger(self.train_dag)
            triggered = True

    def _forgive_earlier_runs(self) -> None:
        """A run that began before this command may have failed of what is mended by now: what it left is run again."""
        mine = [one for one in self.follower.failures if one.run.started_at and one.run.started_at >= self.began]
        self.follower.failures[:] = mine

    def _raise_failures(self) -> None:
        if self.follower.failures:
            first, *others = self.follower.failures
            for other in others:
                self.reporter.say(str(other.error()))
            raise first.error()


def _must_be_cleared(run: DagRun) -> bool:
    """A backfill leaves successes alone, though the files or the recipe changed, and does not know manual runs."""
    return run.state == "success" or run.run_type == "manual"


def _groups(intervals: Sequence[str]) -> list[list[str]]:
    """Intervals that one backfill covers; `static` and days that are not over stand alone."""
    today = datetime.now(UTC).date().isoformat()
    groups: list[list[str]] = []
    for interval in sorted(intervals):
        last = groups[-1][-1] if groups else ""
        alone = STATIC in (interval, last) or interval >= today
        if last and not alone and (date.fromisoformat(interval) - date.fromisoformat(last)).days <= MAX_GAP_DAYS:
            groups[-1].append(interval)
        else:
            groups.append([interval])
    return groups
