"""A contender in a process of its own, where malloc and OpenMP are as they come and not as our engine has set them."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

from bench.harness import Contender

_SPINS = "300000"
"""libgomp's own, which OMP_WAIT_POLICY=PASSIVE in our environment would change."""


@contextmanager
def apart(make: Callable[..., Contender], *arguments: Any) -> Iterator[Contender]:
    """What `make(*arguments)` gives in a fresh interpreter; `make` is a module's function, its arguments are pickled.

    Raises RuntimeError where the process ends by itself.
    """
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(there, make, arguments), daemon=True)
    before = os.environ.get("GOMP_SPINCOUNT")
    os.environ.setdefault("GOMP_SPINCOUNT", _SPINS)
    try:
        process.start()
    finally:
        if before is None:
            del os.environ["GOMP_SPINCOUNT"]
    there.close()

    def run() -> float:
        try:
            here.send(None)
            rate: float = here.recv()
        except (EOFError, OSError) as error:
            raise RuntimeError("the contender's process has ended; its error is above") from error
        return rate

    try:
        yield run
    finally:
        here.close()
        process.join(timeout=10)
        process.kill()


def _serve(connection: Connection, make: Callable[..., Contender], arguments: tuple[Any, ...]) -> None:
    contender = make(*arguments)
    while True:
        try:
            connection.recv()
        except EOFError:
            return
        connection.send(contender())
