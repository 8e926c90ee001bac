"""A dataset with its own feature store: real Feast on the session's PostgreSQL."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psycopg
from small_datasets import Ingested, accepted, ingested

from pipelines.adapters.features import FeatureRepository
from pipelines.adapters.online_store import OnlineStore
from pipelines.core import datasets
from pipelines.core.embedding import Embedder, HogColorV1
from pipelines.core.features import HOG_COLOR, project_of
from pipelines.core.recipe import Recipe, Split
from pipelines.core.results import sha256_file
from pipelines.core.storage import Storage, open_storage
from pipelines.core.values import Materialized, Snapshotted
from pipelines.settings import Settings
from pipelines.steps.materialize import IntervalTables, materialize
from pipelines.steps.snapshot import snapshot

NAMES = iter(f"materialized-{number}" for number in range(100))


class House:
    """One dataset of its own."""

    def __init__(self, settings: Settings, tmp_path: Path) -> None:
        self.name = next(NAMES)
        self.recipe = Recipe(name=self.name, split=Split(val_share=0.2, test_share=0.2, near_duplicate_distance=0))
        self.data = tmp_path / "data"
        self.work = tmp_path / "work"
        self.work.mkdir()
        self.storage: Storage = open_storage(str(tmp_path / "store"))
        self.url = settings.database_url("feast")
        self.repository = FeatureRepository(recipe=self.name, database_url=self.url, store_uri=self.storage.uri)
        self.online = OnlineStore(self.url, self.name)
        self.embedder: Embedder = HogColorV1()
        self.facts: dict[str, Any] = {}

    def ingest(self, interval: str) -> Ingested:
        return ingested(self.recipe, self.data, interval, self.storage, self.work)

    def materialize(self, found: Ingested) -> Materialized:
        scratch = self.work / f"scratch-{len(list(self.work.glob('*')))}"
        scratch.mkdir()
        head = datasets.read_head(self.storage, self.name).intervals
        tables = IntervalTables(
            interval=found.assembled.interval,
            manifest=found.folder / "manifest.parquet",
            statistics=found.folder / "statistics.parquet",
            digest=sha256_file(found.folder / "manifest.parquet"),
            accepted=[
                self.storage.local(datasets.interval_key(self.name, interval, digest), scratch)
                for interval, digest in head.items()
            ],
        )
        return materialize(
            name=self.name,
            tables=tables,
            storage=self.storage,
            embedder=self.embedder,
            repository=self.repository,
            online=self.online,
            scratch=scratch,
            facts=self.facts,
        )

    def run(self, interval: str) -> Ingested:
        found = self.ingest(interval)
        self.materialize(found)
        accepted(found, self.storage, self.work)
        return found

    def stored(self, view: str = HOG_COLOR.name) -> dict[bytes, tuple[Any, ...]]:
        """event_ts and created_ts of every image online."""
        with psycopg.connect(self.url) as connection:
            rows = connection.execute(
                f'SELECT DISTINCT entity_key, event_ts, created_ts FROM "{project_of(self.name)}_{view}"'
            ).fetchall()
        return {bytes(row[0]): row[1:] for row in rows}

    def snapshot(self) -> tuple[Snapshotted, Path]:
        out = self.work / f"snapshot-{len(list(self.work.glob('*')))}"
        out.mkdir()
        head = datasets.read_head(self.storage, self.name)
        found = snapshot(self.storage, self.name, head, "", self.recipe.split, out, self.work / "cache")
        return found, out / "manifest.parquet"
