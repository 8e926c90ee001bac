"""What all parts of Envoy's configuration are made of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

Resource = dict[str, Any]

REQUEST_TIMEOUT_S = 30
BUFFER_BYTES = 256 * 1024
"""Of a connection, in each direction. A body that streams can be sent again while no more of it has passed."""

TYPES = "type.googleapis.com/envoy"
HTTP_FILTERS = f"{TYPES}.extensions.filters.http"
ROUTES_NAME = "darkroom"


def address(port: int, host: str = "127.0.0.1") -> Resource:
    both = {"ipv4_compat": True} if host == "::" else {}
    return {"socket_address": {"address": host, "port_value": port, **both}}


def watched(folder: Path, name: str) -> Resource:
    return {
        "resource_api_version": "V3",
        "path_config_source": {
            "path": str(folder / name),
            "watched_directory": {"path": str((folder / name).parent)},
        },
    }
