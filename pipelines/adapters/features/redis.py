"""The online store behind Feast's own writer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pyarrow as pa

from pipelines.adapters.features.repository import FeatureRepository
from pipelines.core.features import entity_key

if TYPE_CHECKING:
    from feast import FeatureStore


class FeastOnlineStore:
    """The online store behind Feast's own writer; the pipeline takes it where that store is Redis."""

    def __init__(self, repository: FeatureRepository) -> None:
        self._repository = repository

    @contextmanager
    def loading(self, view: str, num_rows: int, dim: int | None) -> Iterator[FeastWriter]:  # noqa: ARG002 (Redis builds nothing)
        yield FeastWriter(self._repository.open(), view)

    def remove(self, view: str, image_ids: Sequence[str], until: datetime) -> None:
        """Drop a view's values of images whose stored event time is not after `until`.

        Feast has no such call; an image is a Redis hash whose fields are its features and one time for each view.
        """
        store = self._repository.open()
        from feast.infra.online_stores.helpers import _mmh3
        from google.protobuf.timestamp_pb2 import Timestamp  # type: ignore[import-untyped]

        client = store._get_provider().online_store._get_client(store.config.online_store)
        time_field = f"_ts:{view}"
        fields = [time_field, *(_mmh3(f"{view}:{one.name}") for one in store.get_feature_view(view).features)]
        keys = [entity_key(image_id) + store.project.encode() for image_id in image_ids]
        for start in range(0, len(keys), 5000):
            with client.pipeline(transaction=False) as asked, client.pipeline(transaction=False) as dropped:
                for key in keys[start : start + 5000]:
                    asked.hget(key, time_field)
                for key, found in zip(keys[start : start + 5000], asked.execute(), strict=True):
                    if found and Timestamp.FromString(found).ToDatetime(UTC) <= until:
                        dropped.hdel(key, *fields)
                dropped.execute()


class FeastWriter:
    """Writes batches with `FeatureStore.write_to_online_store`."""

    def __init__(self, store: FeatureStore, view: str) -> None:
        self._store = store
        self._view = view

    def write(self, rows: pa.Table) -> None:
        """Upsert rows: image_id, event_timestamp, created_timestamp and the features."""
        self._store.write_to_online_store(self._view, rows.to_pandas())
