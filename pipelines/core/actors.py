"""Who acts, as the audit log names it: what a process says of itself, under the account that it runs as."""

from __future__ import annotations

import os
import pwd
import socket

from pipelines.core.runs import RunId


def person() -> str:
    """Whoever gave this command: `user@host` of the operating system, whatever the environment claims."""
    try:
        user = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # a container's user without an entry
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


def airflow(run: RunId) -> str:
    """A task of Airflow: `airflow:<dag_id>/<run_id>`; Airflow's own log says who started that run."""
    return f"airflow:{run}"


def supervisor() -> str:
    """The platform's supervisor: `supervisor:host`."""
    return f"supervisor:{socket.gethostname()}"
