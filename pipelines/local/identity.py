"""What a running platform was started from: so that `darkroom up` sees when it has to start it again."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict

from pipelines.core.closure import code_digest
from pipelines.settings import DEFAULT_PORTS, REPOSITORY, Settings

# The supervisor's own code and what it starts by name. Steps and DAG files are read anew by every task.
_ROOTS = (
    *("pipelines.local.supervisor", "pipelines.local.keeper", "pipelines.local.launch", "pipelines.local.stephost"),
    *("bentos.kit.worker", "bentos.kit.frames", "bentos.kit.heads"),
    *("bentos.similar.service", "bentos.similar.indexing"),
)

_PORTS = tuple(f"DARKROOM_{service.upper()}_PORT" for service in DEFAULT_PORTS)
_OVERRIDES = ("DARKROOM_DATABASE_URL_", "DARKROOM_JWT_", *_PORTS)


def credentials() -> str:
    """Digest of the AWS settings of this process; empty where it has none.

    Apart from the identity: for a command that lacks them the platform is good as it is, for one with others it is not.
    """
    found = {key: value for key, value in os.environ.items() if key.startswith("AWS_")}
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest() if found else ""


def identity(settings: Settings) -> str:
    """Digest of the supervisor's code, the installed versions (by their lock) and every setting."""
    parts = {
        "code": code_digest(_ROOTS, REPOSITORY),
        "lock": hashlib.sha256((REPOSITORY / "requirements.lock").read_bytes()).hexdigest(),
        "settings": {key: str(value) for key, value in asdict(settings).items()},
        "overrides": {key: value for key, value in os.environ.items() if key.startswith(_OVERRIDES)},
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
