"""A home and ports of a test's own."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from pipelines import settings as settings_module
from pipelines.local.ports import free_port
from pipelines.settings import DEFAULT_PORTS, Settings


def settings_under(home: Path) -> Settings:
    """Settings with a home and free ports of their own, whatever the environment says."""
    home.mkdir(parents=True, exist_ok=True)
    (home / "ports.json").write_text(json.dumps({service: free_port() for service in DEFAULT_PORTS}))
    return replace(
        settings_module.load(), home=home, store_uri=str(home / "store"), s3_endpoint_url=None, gateway_port=free_port()
    )
