"""A client on MLflow's own tables, its experiments, and locks that end with their holder."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pipelines.core.errors import PlatformError

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from pipelines.settings import Settings

_LOCKS = 9_301
"""First key of this adapter's advisory locks in MLflow's database; the second is the hash of what is locked."""


_SHOW_TRAINING = {"mlflow.experimentKind": "custom_model_development"}
"""Makes MLflow's pages show runs and metrics, and not traces of conversations."""


def connect(settings: Settings) -> MlflowClient:
    """A client of the tracking tables and the registry. Raises PlatformError where PostgreSQL does not answer."""
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    if settings.s3_endpoint_url:
        os.environ["MLFLOW_S3_ENDPOINT_URL"] = settings.s3_endpoint_url
    url = settings.database_url("mlflow")
    # The tables are made by whoever comes first; two at once would both try.
    with locked(url, "tables"):
        from mlflow import MlflowClient

        logging.getLogger("mlflow").setLevel(logging.WARNING)
        logging.getLogger("alembic").setLevel(logging.WARNING)
        client = MlflowClient(tracking_uri=url, registry_uri=url)
        client.search_experiments(max_results=1)
        return client


@contextmanager
def locked(url: str, name: str) -> Iterator[None]:
    """Hold a lock of PostgreSQL's, which a killed holder releases. Raises PlatformError."""
    import psycopg

    try:
        connection = psycopg.connect(url, connect_timeout=5, application_name="darkroom")
    except psycopg.OperationalError as error:
        raise PlatformError(f"PostgreSQL does not answer ({error}); `darkroom up` starts it") from error
    with connection:
        connection.execute("SELECT pg_advisory_xact_lock(%s, hashtext(%s))", [_LOCKS, name])
        yield


def experiment(client: MlflowClient, settings: Settings, name: str) -> str:
    """Id of the model's experiment, made or brought back where needed, with its artifacts in the object store."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(
                client.create_experiment(
                    name, artifact_location=f"{settings.store_uri.rstrip('/')}/mlflow/{name}", tags=_SHOW_TRAINING
                )
            )
        except MlflowException:  # another process was quicker
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    return str(found.experiment_id)
