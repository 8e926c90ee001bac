"""The MLflow server of one machine, for people to look at; steps speak to its database directly.

`mlflow server` takes 1.2-1.5 GB; with one worker and no job executor 450 MB, half of it in a parent that waits for a
child. So we start the child ourselves, with the environment (mlflow/server/constants.py) that the parent would give it.
"""

from __future__ import annotations

import sys
import uuid
from importlib import metadata

from pipelines.local.process import ManagedProcess, environment
from pipelines.local.services import Service, get
from pipelines.settings import Settings

# The command's own body, with the URL from the environment: on its command line everybody could read the password.
_MIGRATE = "import os; from mlflow.db import upgrade; upgrade.callback(os.environ['MLFLOW_BACKEND_STORE_URI'])"


def version() -> str:
    """What the schema is migrated to."""
    return f"mlflow {metadata.version('mlflow')}"


def mlflow_environment(settings: Settings) -> dict[str, str]:
    url = settings.database_url("mlflow")
    found = {
        **environment(settings),
        "MLFLOW_BACKEND_STORE_URI": url,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "_MLFLOW_SERVER_FILE_STORE": url,
        "_MLFLOW_SERVER_REGISTRY_STORE": url,
        # Large artifacts go straight to the store; the pages read them there.
        "_MLFLOW_SERVER_ARTIFACT_ROOT": f"{settings.store_uri.rstrip('/')}/mlflow",
        "_MLFLOW_SGI_NAME": "uvicorn",
        "_MLFLOW_SERVER_BOOT_ID": uuid.uuid4().hex,
    }
    if settings.s3_endpoint_url:
        found["MLFLOW_S3_ENDPOINT_URL"] = settings.s3_endpoint_url
    return found


def migration(settings: Settings) -> ManagedProcess:
    """`mlflow db upgrade`, which also makes the tables of an empty database."""
    return ManagedProcess(
        "mlflow-migrate",
        [sys.executable, "-c", _MIGRATE],
        mlflow_environment(settings),
        settings.home / "logs" / "mlflow-migrate.log",
    )


def service(settings: Settings) -> Service:
    port = settings.port("mlflow")
    process = ManagedProcess(
        "mlflow",
        [
            *(sys.executable, "-m", "uvicorn", "--host", "127.0.0.1", "--port", str(port)),
            *("--log-level", "warning", "mlflow.server.fastapi_app:app"),
        ],
        mlflow_environment(settings),
        settings.home / "logs" / "mlflow.log",
        port=port,
    )
    return Service(process=process, ready=lambda: get(port, "/health")[0] == 200)
