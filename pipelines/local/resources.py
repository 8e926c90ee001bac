"""Is there enough memory and disk to start: said before anything is, with the setting that changes it."""

from __future__ import annotations

import shutil
from pathlib import Path

from pipelines.core.errors import UserError
from pipelines.settings import Settings

_MB = 1_000_000


def check(settings: Settings) -> None:
    """Raises UserError naming what there is too little of, and the mend."""
    check_disk(settings)
    free_mb = available_memory_bytes() // _MB
    if free_mb < settings.min_memory_mb:
        raise UserError(
            f"memory: {free_mb} MB are free, the platform needs {settings.min_memory_mb} MB; end other programs, start "
            "with `--without airflow` (direct runs), or lower DARKROOM_MIN_MEMORY_MB"
        )


def check_disk(settings: Settings) -> None:
    """Raises UserError where the home's disk is full, or the home cannot be written."""
    try:
        settings.home.mkdir(parents=True, exist_ok=True)
        free_mb = shutil.disk_usage(settings.home).free // _MB
    except OSError as error:
        raise UserError(f"{settings.home}: {error.strerror}; choose another DARKROOM_HOME") from error
    if free_mb < settings.min_disk_mb:
        raise UserError(
            f"disk: {free_mb} MB are free at {settings.home}, {settings.min_disk_mb} MB are needed; free some, "
            "set DARKROOM_HOME to another disk, or lower DARKROOM_MIN_DISK_MB"
        )


def available_memory_bytes() -> int:
    """What a new process could use: the system's available memory, or less where a control group says so."""
    available = next(
        int(line.split()[1]) * 1024
        for line in Path("/proc/meminfo").read_text().splitlines()
        if line.startswith("MemAvailable:")
    )
    return min([available, *_group_headrooms()])


def _group_headrooms() -> list[int]:
    """Limit less use (page cache that can be dropped left out) of our control group and those above it (version 2)."""
    try:
        line = next(line for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::"))
    except (OSError, StopIteration):
        return []
    found = []
    group = Path("/sys/fs/cgroup") / line[3:].lstrip("/")
    for folder in (group, *group.parents):
        try:
            limit = (folder / "memory.max").read_text().strip()
            used = int((folder / "memory.current").read_text())
            stat = dict(row.split() for row in (folder / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):
            continue
        if limit != "max":
            found.append(int(limit) - used + int(stat.get("inactive_file", 0)))
    return found
