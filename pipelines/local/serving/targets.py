"""Where Prometheus finds the serving processes: `DARKROOM_HOME/prometheus/targets.json`, for its file_sd_configs.

A process has a port of its own, another one each time it starts; through the gateway one never knows which of several
has answered.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from pipelines.local.serving.fleet import Fleet
from pipelines.settings import Settings


def path(settings: Settings) -> Path:
    return settings.home / "prometheus" / "targets.json"


def write(settings: Settings, fleets: Iterable[Fleet]) -> None:
    """The ready processes of these deployments, atomically; nothing where the file says so already."""
    groups = [
        {
            "targets": [f"127.0.0.1:{process.port}" for process in fleet.endpoints()],
            "labels": {"model": fleet.model, "version": str(fleet.deployment.build.version), "cluster": fleet.cluster},
        }
        for fleet in fleets
    ]
    file, text = path(settings), json.dumps(groups, indent=1) + "\n"
    if file.exists() and file.read_text() == text:
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")  # Prometheus reads what ends in .json
    partial.write_text(text)
    partial.replace(file)
