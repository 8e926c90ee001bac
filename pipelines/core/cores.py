"""How many cores there are for us."""

from __future__ import annotations

import os
from pathlib import Path


def num_cores() -> int:
    """Cores this process may use: those it is bound to, or fewer where its container has less CPU time."""
    bound = len(os.sched_getaffinity(0))
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return bound if quota == "max" else max(1, min(bound, round(int(quota) / int(period))))
    except (OSError, ValueError):
        return bound
