"""A process and everything below it, as /proc shows them."""

from __future__ import annotations

import os
from pathlib import Path

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_OWN_AND_ENDED = slice(11, 15)
"""utime, stime, cutime and cstime in /proc/PID/stat, counted from the state."""


def below(pid: int | str) -> list[str]:
    """Pids of all descendants."""
    found: list[str] = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = path.read_text().split()
        except OSError:
            continue
        for child in children:
            found += [child, *below(child)]
    return found


def cpu_s(pid: int) -> float:
    """CPU seconds (user and system) of the tree so far, ended children that were waited for included.

    In steps of a tick (10 ms). Zero for a process that has ended.
    """
    return sum(_cpu_s(one) for one in (str(pid), *below(pid)))


def _cpu_s(pid: str) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return _TICK_S * sum(int(field) for field in fields[_OWN_AND_ENDED])
