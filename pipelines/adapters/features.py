"""Feast: definitions, registry, point-in-time joins. The only importer of `feast` beside `feature_repo`.

Rows reach the online store through `adapters.online_store`, or through Feast's own writer where that is Redis.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlsplit

import psycopg
import pyarrow as pa

from pipelines.core.errors import PlatformError
from pipelines.core.features import STATISTICS, STATISTICS_VIEW, EmbeddingView, entity_key, project_of

if TYPE_CHECKING:
    from dask.dataframe import DataFrame as DaskFrame
    from feast import FeatureStore, FileSource

REPOSITORY = Path(__file__).resolve().parent.parent.parent / "feature_repo"
_APPLY_LOCK = 7_214_001
"""Advisory lock: one process applies definitions at a time, whatever the recipe, since the registry is shared."""


@dataclass(frozen=True, kw_only=True)
class FeatureRepository:
    """The feature store of one recipe."""

    recipe: str
    database_url: str
    store_uri: str
    s3_endpoint_url: str | None = None
    redis_url: str | None = None
    """Online store in Redis instead of PostgreSQL."""

    def variables(self) -> dict[str, str]:
        """The variables of feature_repo/feature_store.yaml."""
        parts = urlsplit(self.database_url)
        host = parts.hostname or "127.0.0.1"
        local = host in ("127.0.0.1", "localhost", "::1")
        sslmode = parse_qs(parts.query).get("sslmode", ["disable" if local else "require"])[0]
        registry = parts._replace(scheme="postgresql+psycopg", query=f"sslmode={sslmode}").geturl()
        return {
            "DARKROOM_FEAST_PROJECT": project_of(self.recipe),
            "DARKROOM_FEAST_REGISTRY": registry,
            "DARKROOM_FEAST_HOST": host,
            "DARKROOM_FEAST_PORT": str(parts.port or 5432),
            "DARKROOM_FEAST_DATABASE": parts.path.lstrip("/"),
            "DARKROOM_FEAST_USER": unquote(parts.username or ""),
            "DARKROOM_FEAST_PASSWORD": unquote(parts.password or ""),
            "DARKROOM_FEAST_SSLMODE": sslmode,
            "DARKROOM_FEAST_REDIS": self.redis_url or "",
        }

    @property
    def configuration(self) -> Path:
        """The feature_store.yaml in force."""
        return REPOSITORY / ("feature_store_redis.yaml" if self.redis_url else "feature_store.yaml")

    def open(self) -> FeatureStore:
        """Feast's store object: 1 s for the import, 0.3 s for the registry."""
        import yaml

        import_feast()
        from feast import FeatureStore
        from feast.repo_config import RepoConfig

        table = _filled(yaml.safe_load(self.configuration.read_text()), self.variables())
        return FeatureStore(config=RepoConfig(**table, repo_path=REPOSITORY))

    def command(self, arguments: Sequence[str]) -> None:
        """Feast's own command on this store; its variables must be in the environment. Ends the process."""
        import_feast()
        from feast.cli.cli import cli

        where = ["--feature-store-yaml", str(self.configuration), "--chdir", str(REPOSITORY)]
        cli([*where, *arguments], prog_name="feast")

    def ensure(self, embedding: EmbeddingView) -> bool:
        """Apply the definitions if they changed since the last time. Returns whether they had."""
        digest = self._definitions_digest(embedding)
        try:
            connection = psycopg.connect(self.database_url, connect_timeout=10, autocommit=True)
        except psycopg.OperationalError as error:
            raise PlatformError(
                f"feature store: PostgreSQL does not answer ({error}); `darkroom up` starts it"
            ) from error
        with connection, _advisory_lock(connection, _APPLY_LOCK):
            connection.execute(
                "CREATE TABLE IF NOT EXISTS darkroom_applied "
                "(project text, view text, digest text NOT NULL, PRIMARY KEY (project, view))"
            )
            place = (project_of(self.recipe), embedding.name)
            found = connection.execute("SELECT digest FROM darkroom_applied WHERE (project, view) = (%s, %s)", place)
            if found.fetchone() == (digest,):
                return False
            self._apply(embedding)
            connection.execute(
                "INSERT INTO darkroom_applied VALUES (%s, %s, %s) ON CONFLICT (project, view) "
                "DO UPDATE SET digest = EXCLUDED.digest",
                (*place, digest),
            )
        return True

    def _definitions_digest(self, embedding: EmbeddingView) -> str:
        digest = hashlib.sha256(f"{embedding} {self.store_uri} {self.s3_endpoint_url} {bool(self.redis_url)}".encode())
        for path in sorted(REPOSITORY.glob("*.py")):
            digest.update(path.read_bytes())
        return digest.hexdigest()

    def _apply(self, embedding: EmbeddingView) -> None:
        store = self.open()
        from feature_repo.entities import image
        from feature_repo.services import similarity_service, training_service
        from feature_repo.views import embedding_view, statistics_view

        statistics = statistics_view(self.recipe, self.store_uri, self.s3_endpoint_url)
        vectors = embedding_view(self.recipe, embedding.name, embedding.dim, self.store_uri, self.s3_endpoint_url)
        store.apply([image, statistics, vectors, training_service(statistics), similarity_service(vectors)])

    def historical(self, entities: pa.Table, features: Sequence[str]) -> pa.Table:
        """Point-in-time statistics: each image as it was known at its event time.

        `entities`: image_id, event_timestamp (UTC). Returns those columns and the features, in no particular order;
        nulls where the store knew nothing of an image at that time.
        """
        store = self.open()
        job = store.get_historical_features(
            entity_df=entities.select(["image_id", "event_timestamp"]).to_pandas(),
            features=[f"{STATISTICS_VIEW}:{feature}" for feature in features],
        )
        keys = [entities.schema.field("image_id"), entities.schema.field("event_timestamp")]
        schema = pa.schema([*keys, *((feature, pa.type_for_alias(STATISTICS[feature])) for feature in features)])
        with _folder_reader():
            frame = job.to_df()
        # Feast drops an image all of whose features are of a later time; here it comes back with nulls.
        found = pa.Table.from_pandas(frame[schema.names], schema=schema, preserve_index=False)
        return entities.select(["image_id", "event_timestamp"]).join(found, ["image_id", "event_timestamp"])


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


@contextmanager
def _advisory_lock(connection: psycopg.Connection, number: int) -> Iterator[None]:
    connection.execute("SELECT pg_advisory_lock(%s)", (number,))
    try:
        yield
    finally:
        connection.execute("SELECT pg_advisory_unlock(%s)", (number,))


def _filled(node: Any, variables: Mapping[str, str]) -> Any:
    if isinstance(node, dict):
        return {key: _filled(value, variables) for key, value in node.items()}
    return Template(node).substitute(variables) if isinstance(node, str) else node


def import_feast() -> None:
    """Import feast without what makes it slow: 1.0 s and 180 MB instead of 5 s and 810 MB.

    It imports torch for one type annotation, and typeguard recompiles most of its classes (2.5 s) to check calls that
    are checked here by mypy and the tests. Both are put back, so that a process that needs torch still gets it.
    """
    if "feast" in sys.modules:
        return
    import typeguard

    absent = object()
    torch = sys.modules.get("torch", absent)
    checked = typeguard.typechecked
    typeguard.typechecked = _unchecked
    if torch is absent:
        sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        import feast
    finally:
        typeguard.typechecked = checked
        if torch is absent:
            del sys.modules["torch"]
    assert feast


def _unchecked(target: Any = None, **_: Any) -> Any:
    return (lambda inner: inner) if target is None else target


def _read_folder(source: FileSource, _repository: object) -> DaskFrame:
    """All rows of a Parquet folder as one partition.

    Feast's own reader makes a dask partition of every file, and its join then takes 67 s for the 365 files of a year
    (2 s for 10 files); it also needs packages of its own for s3://, which pyarrow reads by itself.
    """
    import dask.dataframe as dd
    import pyarrow.dataset as ds
    from feast import FileSource

    filesystem, path = FileSource.create_filesystem_and_path(source.path, source.s3_endpoint_override)
    table = ds.dataset(path.rstrip("/"), filesystem=filesystem, format="parquet").to_table()
    frame: DaskFrame = dd.from_pandas(  # type: ignore[no-untyped-call]
        table.to_pandas(split_blocks=True, self_destruct=True), npartitions=1
    )
    return frame


@contextmanager
def _folder_reader() -> Iterator[None]:
    from feast.infra.offline_stores import dask as offline

    kept = offline._read_datasource
    offline._read_datasource = _read_folder
    try:
        yield
    finally:
        offline._read_datasource = kept
