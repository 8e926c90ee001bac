"""Airflow on one machine: its configuration, all of it by environment, and its four processes.

`airflow standalone` is not used: it leaves orphans on TERM. Figures are of Airflow 3.3 on 2 cores.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path

from pipelines.adapters.orchestrator import Orchestrator
from pipelines.local import secrets
from pipelines.local.process import ManagedProcess, environment
from pipelines.local.services import Service, get, get_json, newer
from pipelines.settings import REPOSITORY, Settings

ADMIN = "admin"
GPU_POOL = "gpu"


def version() -> str:
    """What the schema is migrated to."""
    return f"apache-airflow {metadata.version('apache-airflow')}"


def airflow_environment(settings: Settings) -> dict[str, str]:
    """Everything Airflow reads; its own configuration file is never written."""
    port = settings.port("airflow")
    home = settings.home / "airflow"
    return {
        **environment(settings),
        "AIRFLOW_HOME": str(home),
        # Else Airflow writes a file of defaults, which would outlive the release that they are of.
        "AIRFLOW_CONFIG": os.devnull,
        **{
            f"AIRFLOW__{key}": value
            for key, value in {
                "CORE__DAGS_FOLDER": str(REPOSITORY / "dags"),
                "CORE__LOAD_EXAMPLES": "False",
                "CORE__EXECUTOR": "LocalExecutor",
                "CORE__PARALLELISM": str(max(4, 2 * (os.cpu_count() or 1))),
                "CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
                "CORE__EXECUTION_API_SERVER_URL": f"http://127.0.0.1:{port}/execution/",
                "CORE__FERNET_KEY": settings.secret("airflow-fernet"),
                "CORE__AUTH_MANAGER": "airflow.api_fastapi.auth.managers.simple.simple_auth_manager.SimpleAuthManager",
                "CORE__SIMPLE_AUTH_MANAGER_USERS": f"{ADMIN}:admin",
                "CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(settings.secrets / secrets.AIRFLOW_PASSWORDS),
                "DATABASE__SQL_ALCHEMY_CONN": settings.database_url("airflow"),
                "DATABASE__LOAD_DEFAULT_CONNECTIONS": "False",
                "API__HOST": "127.0.0.1",
                "API__PORT": str(port),
                "API__BASE_URL": f"http://127.0.0.1:{port}",
                "API__WORKERS": "1",
                "API__SECRET_KEY": settings.secret("airflow-secret-key"),
                "API_AUTH__JWT_SECRET": settings.secret("airflow-jwt"),
                "LOGGING__BASE_LOG_FOLDER": str(home / "logs"),
                "LOGGING__DAG_PROCESSOR_CHILD_PROCESS_LOG_DIRECTORY": str(home / "logs" / "dag_processor"),
                # A chained command task costs 0.24-0.29 s with these, 0.58-0.71 s without; with the default heartbeat
                # workers idle 5 s after half of the tasks.
                "SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.2",
                "WORKERS__MIN_HEARTBEAT_INTERVAL": "1",
                # A killed worker's task is tried again after 20 s and not 300; likewise what a killed scheduler left.
                "SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "20",
                "SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "5",
                "SCHEDULER__SCHEDULER_HEALTH_CHECK_THRESHOLD": "15",
                "SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "15",
                # A new DAG file is seen within 1-2 s.
                "DAG_PROCESSOR__REFRESH_INTERVAL": "2",
                "DAG_PROCESSOR__BUNDLE_REFRESH_CHECK_INTERVAL": "1",
                "DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "5",
                "DAG_PROCESSOR__PARSING_PROCESSES": "1",
                "USAGE_DATA_COLLECTION__ENABLED": "False",
            }.items()
        },
    }


def migration(settings: Settings) -> ManagedProcess:
    """`airflow db migrate`: 6-8 s on an empty database."""
    return _process(settings, "airflow-migrate", ["db", "migrate"], airflow_environment(settings))


def services(settings: Settings) -> list[Service]:
    """Api-server, scheduler, DAG processor and triggerer; they may start all at once."""
    env = airflow_environment(settings)
    port = settings.port("airflow")
    api = _process(settings, "airflow-api", ["api-server"], env, port=port)
    found = [Service(process=api, ready=lambda: _serves_tasks(port), stop_s=15)]
    for name, component, arguments in (
        # Without --skip-serve-logs these listen on 0.0.0.0 and take 150 MB more.
        ("airflow-scheduler", "scheduler", ["scheduler", "--skip-serve-logs"]),
        ("airflow-dag-processor", "dag_processor", ["dag-processor"]),
        ("airflow-triggerer", "triggerer", ["triggerer", "--skip-serve-logs"]),
    ):
        process = _process(settings, name, arguments, env)
        found.append(Service(process=process, ready=_beats(process, port, component), stop_s=15))
    return found


def ensure_pools(settings: Settings) -> None:
    """The pool that training tasks share: one slot a GPU, one where there is none."""
    orchestrator = Orchestrator(
        f"http://127.0.0.1:{settings.port('airflow')}", ADMIN, settings.secret(secrets.ADMIN_PASSWORD)
    )
    try:
        slots = max(1, len(list(Path("/dev").glob("nvidia[0-9]*"))))
        orchestrator.ensure_pool(GPU_POOL, slots, "tasks that want the GPU, or all cores where there is none")
    finally:
        orchestrator.close()


def _process(
    settings: Settings, name: str, arguments: list[str], env: Mapping[str, str], *, port: int | None = None
) -> ManagedProcess:
    return ManagedProcess(
        name,
        [sys.executable, "-m", "airflow", *arguments],
        env,
        settings.home / "logs" / f"{name}.log",
        port=port,
        stop_signal=signal.SIGTERM,
    )


def _health(port: int) -> dict[str, Mapping[str, str | None]]:
    return get_json(port, "/api/v2/monitor/health")


def _serves_tasks(port: int) -> bool:
    """The API that tasks call is built at its first request, which takes 3 s: better now than in the first task."""
    return bool(_health(port)) and get(port, "/execution/health")[0] == 200


def _beats(process: ManagedProcess, port: int, component: str) -> Callable[[], bool]:
    def ready() -> bool:
        found = _health(port).get(component, {})
        beat = found.get(f"latest_{component}_heartbeat")
        return found.get("status") == "healthy" and newer(beat, process.started_at)

    return ready
