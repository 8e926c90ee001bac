"""Seconds spent loading modules, so that a step's own time can be told from its libraries'."""

from __future__ import annotations

import importlib
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_bootstrap: Any = importlib._bootstrap


class ImportClock:
    """`seconds` grows while this thread loads modules; imports of what is loaded already cost nothing."""

    def __init__(self) -> None:
        self.seconds = 0.0


@contextmanager
def import_clock() -> Iterator[ImportClock]:
    """Count in the calling thread. CPython's import statement and import_module both load through `_find_and_load`."""
    clock = ImportClock()
    original = _bootstrap._find_and_load
    thread = threading.get_ident()
    depth = 0

    def load(*arguments: Any) -> Any:
        nonlocal depth
        if depth or threading.get_ident() != thread:
            return original(*arguments)
        depth += 1
        began = time.perf_counter()
        try:
            return original(*arguments)
        finally:
            clock.seconds += time.perf_counter() - began
            depth -= 1

    _bootstrap._find_and_load = load
    try:
        yield clock
    finally:
        _bootstrap._find_and_load = original
