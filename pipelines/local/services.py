"""What a service of the platform is, and how one looks whether it is ready."""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pipelines.local.process import ManagedProcess


@dataclass(frozen=True, kw_only=True)
class Service:
    """A process and the question whether it does its work."""

    process: ManagedProcess
    ready: Callable[[], bool]
    """Quick (2 s at most), never raises, forks nothing: it is asked from other threads."""
    stop_s: float = 10.0
    """How long it may take to end by itself."""


def get(port: int, path: str, timeout_s: float = 2.0) -> tuple[int, bytes]:
    """Status and body of a local GET; status 0 where nobody answers."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read()
    except (OSError, http.client.HTTPException):
        return 0, b""
    finally:
        connection.close()


def get_json(port: int, path: str) -> dict[str, Any]:
    """The JSON object at a local path; empty where there is none."""
    status, body = get(port, path)
    try:
        found = json.loads(body) if status == 200 else {}
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def newer(moment: str | None, started_at: float) -> bool:
    """True when an ISO heartbeat is younger than a start: an old one is of an earlier process."""
    return moment is not None and datetime.fromisoformat(moment.replace("Z", "+00:00")).timestamp() >= started_at
