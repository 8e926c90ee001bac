"""What all parts of Envoy's configuration are made of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

Resource = dict[str, Any]

REQUEST_TIMEOUT_S = 30
BODY_TIMEOUT_S = 14
"""For a body to arrive: who sends a byte now and then does not hold a place for long."""

TYPES = "type.googleapis.com/envoy"
HTTP_FILTERS = f"{TYPES}.extensions.filters.http"
ROUTES_NAME = "darkroom"


def address(port: int) -> Resource:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def watched(folder: Path, name: str) -> Resource:
    return {
        "resource_api_version": "V3",
        "path_config_source": {
            "path": str(folder / name),
            "watched_directory": {"path": str((folder / name).parent)},
        },
    }
