"""What both ways of running the chain share: which work is left."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pipelines.adapters import database
from pipelines.cli.chain import graph
from pipelines.cli.chain.freshness import first_stale_step, result_of
from pipelines.cli.chain.report import Reporter
from pipelines.cli.execute import storage_of
from pipelines.cli.past_runs import PastRun, past_runs
from pipelines.core.recipe import Recipe
from pipelines.core.results import ResultStore
from pipelines.core.runs import RunRequest
from pipelines.core.values import Deployed, Planned
from pipelines.settings import Settings


@dataclass
class Chain:
    """One recipe's ingest and training."""

    settings: Settings
    recipe: Recipe
    reporter: Reporter

    def __post_init__(self) -> None:
        self.ingest_dag = graph.ingest_dag(self.settings, self.recipe.name)
        self.train_dag = graph.train_dag(self.settings, self.recipe.name)
        self.began = datetime.now(UTC)

    def stale_intervals(self, intervals: Sequence[str]) -> list[str]:
        """Those that no finished run brought in as they are now."""
        past = past_runs(storage_of(self.settings), self.ingest_dag)
        return [one for one in intervals if self._fresh_ingest(one, past) is None]

    def fresh_ingests(self, intervals: Sequence[str]) -> list[PastRun]:
        """The newest run of each interval that stands."""
        past = past_runs(storage_of(self.settings), self.ingest_dag)
        return [found for one in intervals if (found := self._fresh_ingest(one, past))]

    def _fresh_ingest(self, interval: str, past: Sequence[PastRun]) -> PastRun | None:
        request = RunRequest(recipe=self.recipe, interval=interval)
        mine = [one for one in reversed(past) if one.request.interval == interval and one.finished("accept")]
        mine = [one for one in mine if self.has_read_all(one)]
        steps = graph.specs(graph.INGEST)
        fresh = (one for one in mine if first_stale_step(self.settings, steps, one, request, world=False) is None)
        return next((one for one in fresh if self._planned(interval) == self._planned_by(one)), None)

    def has_read_all(self, past: PastRun) -> bool:
        """Files that could not be read are tried again, once by every command."""
        unread = any(one.facts.get("num_unread") for one in past.references)
        return not unread or datetime.fromisoformat(past.ended_at) >= self.began

    def _planned(self, interval: str) -> Planned:
        """What `plan` would list now; it looks at the source, so that no key tells whether it would find the same."""
        from pipelines.core.sources import open_source
        from pipelines.steps.plan import plan

        source = open_source(self.recipe.source, home=self.settings.home, endpoint_url=self.settings.s3_endpoint_url)
        with tempfile.TemporaryDirectory(prefix="darkroom-") as folder:
            return plan(source, interval, Path(folder))

    def _planned_by(self, past: PastRun) -> Planned:
        results = ResultStore(storage_of(self.settings), self.settings.home / "cache")
        return result_of(results, past, "plan").load(Planned)

    def fresh_training(self) -> PastRun | None:
        """The newest finished run that a new one would only repeat.

        It stands too where a person has rolled back from it, or promoted another: that is their word, not work left.
        """
        request = RunRequest(recipe=self.recipe)
        past = past_runs(storage_of(self.settings), self.train_dag)
        mine = [one for one in reversed(past) if one.finished("deploy") and not one.request.as_of]
        steps = graph.specs(graph.TRAIN)
        fresh = (one for one in mine if first_stale_step(self.settings, steps, one, request, world=True) is None)
        return next((one for one in fresh if self._deployed_here(one)), None)

    def _deployed_here(self, past: PastRun) -> bool:
        """The store may know more than this platform: after a lost database, or where machines share it."""
        results = ResultStore(storage_of(self.settings), self.settings.home / "cache")
        deployed = result_of(results, past, "deploy").load(Deployed)
        url = self.settings.database_url("darkroom")
        return database.has_served(url, deployed.model, deployed.version, deployed.package_digest)
