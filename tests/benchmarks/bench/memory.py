"""Memory of this process and its children, and whether it grows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.process_tree import below

TOLERANCE_BYTES = 8_000_000
TOLERANCE_SHARE = 0.01


@dataclass(frozen=True, kw_only=True)
class Sample:
    step: int
    pss_bytes: int
    rss_bytes: int


def sample(step: int, pid: int | str = "self") -> Sample:
    """PSS and RSS of a process and everything below it. Zeros for one that has ended."""
    pids = [str(pid), *below(pid)]
    pss = sum(_field(one, "smaps_rollup", "Pss:") for one in pids)
    return Sample(step=step, pss_bytes=pss, rss_bytes=sum(_field(one, "status", "VmRSS:") for one in pids))


def _field(pid: str, file: str, name: str) -> int:
    try:
        lines = Path(f"/proc/{pid}/{file}").read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(name)), 0)


@dataclass(frozen=True, kw_only=True)
class Growth:
    """PSS of the last quarter of a run against that of the quarter before it."""

    middle_bytes: float
    grown_bytes: float

    @property
    def tolerance_bytes(self) -> float:
        """What an allocator's own coming and going may make."""
        return max(TOLERANCE_BYTES, TOLERANCE_SHARE * self.middle_bytes)

    @property
    def flat(self) -> bool:
        return self.grown_bytes <= self.tolerance_bytes

    def as_json(self) -> dict[str, Any]:
        return {
            "middle_bytes": self.middle_bytes,
            "grown_bytes": self.grown_bytes,
            "tolerance_bytes": self.tolerance_bytes,
            "flat": self.flat,
        }


def growth(samples: Sequence[Sample]) -> Growth:
    """From the middle on, since a run's first half fills caches; medians, since single samples jump."""
    bytes_of = np.array([one.pss_bytes for one in samples], np.float64)
    quarter = max(1, len(bytes_of) // 4)
    last, third = bytes_of[-quarter:], bytes_of[-2 * quarter : -quarter]
    return Growth(middle_bytes=float(np.median(third)), grown_bytes=float(np.median(last) - np.median(third)))
