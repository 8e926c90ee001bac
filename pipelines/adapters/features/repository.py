"""A recipe's definitions in Feast, and what was known of images at their event times.

Rows reach the online store through `adapters.online_store`, or through Feast's own writer where that is Redis.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
import numpy.typing as npt
import psycopg
import pyarrow as pa

from pipelines.adapters.features import offline
from pipelines.adapters.features.loading import import_feast
from pipelines.core.errors import PlatformError
from pipelines.core.features import STATISTICS, STATISTICS_VIEW, EmbeddingView, project_of

if TYPE_CHECKING:
    from feast import FeatureStore

REPOSITORY = Path(__file__).resolve().parents[3] / "feature_repo"
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
        keys = [entities.schema.field("image_id"), entities.schema.field("event_timestamp")]
        schema = pa.schema([*keys, *((feature, pa.type_for_alias(STATISTICS[feature])) for feature in features)])
        frame = offline.join(self.open(), entities, [f"{STATISTICS_VIEW}:{feature}" for feature in features])
        # Feast drops an image all of whose features are of a later time; here it comes back with nulls.
        found = pa.Table.from_pandas(frame[schema.names], schema=schema, preserve_index=False)
        return entities.select(["image_id", "event_timestamp"]).join(found, ["image_id", "event_timestamp"])

    def embeddings(self, entities: pa.Table, view: str, out: Path) -> npt.NDArray[np.bool_]:
        """Point-in-time embeddings: write `out`, a NumPy file float32 [N, D] in the order of `entities`.

        `entities`: image_id, event_timestamp (UTC). Returns which the store knew; rows of the others are zeros.
        """
        return offline.write_vectors(self.open(), view, entities, out)


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
