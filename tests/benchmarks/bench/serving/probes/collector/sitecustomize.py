"""Found by Python at start where this folder is on its path: notes every garbage collection of the process.

A line each, generation and milliseconds, in the file that BENCH_COLLECTIONS names.
"""

from __future__ import annotations

import gc
import os
import time
from typing import Any


def _watch(path: str) -> None:
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    began = 0.0

    def note(phase: str, info: dict[str, Any]) -> None:
        nonlocal began
        if phase == "start":
            began = time.perf_counter()
            return
        milliseconds = 1000 * (time.perf_counter() - began)
        os.write(file, f"{info['generation']} {milliseconds:.3f}\n".encode())

    gc.callbacks.append(note)


if "BENCH_COLLECTIONS" in os.environ:
    _watch(os.environ["BENCH_COLLECTIONS"])
