"""Found by Python at start where this folder is on its path: forgets BENCH_LEAK bytes with every request."""

from __future__ import annotations

import os
from typing import Any


def _leak(num_bytes: int) -> None:
    from starlette.requests import Request

    kept: list[bytearray] = []
    read = Request.stream

    def stream(self: Request) -> Any:
        # Written to, or the kernel would give it no memory.
        kept.append(bytearray(b"x" * num_bytes))
        return read(self)

    Request.stream = stream  # type: ignore[method-assign, assignment]


if "BENCH_LEAK" in os.environ:
    _leak(int(os.environ["BENCH_LEAK"]))
