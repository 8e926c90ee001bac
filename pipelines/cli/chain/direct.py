"""The chain without Airflow: the same commands in the same order, one after the other."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipelines.cli.chain import graph
from pipelines.cli.chain.base import Chain
from pipelines.cli.execute import TASK_MARK, task_mark
from pipelines.cli.past_runs import PastRun
from pipelines.core.actors import person
from pipelines.core.command import TAIL_LINES, Command, said
from pipelines.core.errors import DarkroomError, GateRejected, UserError
from pipelines.core.runs import RunId
from pipelines.local.process import environment
from pipelines.settings import REPOSITORY


@dataclass
class DirectChain(Chain):
    """Ingest every interval that is left, then train if that is left."""

    def ingest(self, intervals: Sequence[str]) -> None:
        """Raises what the first failing step failed with."""
        for interval in self.stale_intervals(intervals):
            run = RunId(dag_id=self.ingest_dag, run_id=f"direct__{interval}")
            planned = self._step(run, interval, "plan", ["--recipe", self.recipe.name, "--interval", interval])
            for shard in range(planned["num_shards"]):
                self._run(run, "ingest", ["--shard", str(shard)], shard)
            self.reporter.step_finished(run, interval, "ingest")
            for name in graph.INGEST[2:] if planned["num_shards"] else ():
                self._step(run, interval, name, [])

    def train(self) -> PastRun:
        """Returns the run whose result stands for the dataset's head."""
        fresh = self.fresh_training()
        if fresh is None:
            run = RunId(dag_id=self.train_dag, run_id=f"direct__{datetime.now(UTC):%Y-%m-%dT%H:%M:%S.%f}")
            # Nothing else ingests here, so the wait that `settle` names is not waited for.
            self._step(run, "", "settle", ["--recipe", self.recipe.name])
            for name in graph.TRAIN[1:]:
                self._step(run, "", name, [])
            fresh = self.fresh_training()
        if fresh is None:
            raise DarkroomError(f"{self.train_dag}: the data, the recipe or the code changed meanwhile; run it again")
        return fresh

    def _step(self, run: RunId, interval: str, name: str, arguments: Sequence[str]) -> Mapping[str, Any]:
        value = self._run(run, name, arguments, None)
        self.reporter.step_finished(run, interval, name)
        return value

    def _run(self, run: RunId, name: str, arguments: Sequence[str], shard: int | None) -> Mapping[str, Any]:
        """One step in a process of its own; its value. Raises what the step raised, by its exit code."""
        tail: list[str] = []

        def heard(line: str) -> None:
            tail.append(line)
            del tail[:-TAIL_LINES]

        with tempfile.TemporaryDirectory(prefix="darkroom-") as folder:
            outcome = Path(folder) / "outcome.json"
            command = Command(
                ["step", name, "--run", str(run), "--outcome", str(outcome), "--actor", person(), *arguments],
                cwd=REPOSITORY,
                environment={**environment(self.settings), TASK_MARK: task_mark(run, name, shard)},
                host=self.settings.home / "run",
            )
            code = command.run(heard)
            if code == 0:
                value: Mapping[str, Any] = json.loads(outcome.read_text())["value"]
                return value
        kind = {1: GateRejected, 2: UserError}.get(code, DarkroomError)
        raise kind(f"step {name} of {run}: {said(tail)}")
