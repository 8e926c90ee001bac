"""Tell training that more data is on its way, so that what a command ingests is trained on once, and not in parts."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from pipelines.core import datasets
from pipelines.core.storage import Storage

_EVERY_S = 10.0
_LASTS_S = 40.0
"""How long training waits for a command that was killed."""


@contextmanager
def announced(storage: Storage, name: str) -> Iterator[None]:
    """While this lasts, `settle` finds the dataset busy."""
    who = f"command/{socket.gethostname()}-{os.getpid()}"
    ended = threading.Event()

    def tell() -> None:
        while not ended.wait(_EVERY_S):
            datasets.touch_activity(storage, name, who, lasts_s=_LASTS_S)

    datasets.touch_activity(storage, name, who, lasts_s=_LASTS_S)
    teller = threading.Thread(target=tell, daemon=True)
    teller.start()
    try:
        yield
    finally:
        ended.set()
        teller.join()
        datasets.finish_activity(storage, name, who)
