"""What the workers of test_workers.py do; in a module of its own, since workers import it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path


def start(argument: int | str) -> Callable[[Sequence[int | str]], list[int]]:
    def work(items: Sequence[int | str]) -> list[int]:
        return [_one(item, argument) for item in items]

    return work


def _one(item: int | str, argument: int | str) -> int:
    if item == "pid":
        (Path(str(argument)) / str(os.getpid())).touch()
        time.sleep(600)
    if item == 999:
        os.kill(os.getpid(), signal.SIGKILL)
    if item == 777:
        raise ValueError("seven")
    return int(item) * int(argument)
