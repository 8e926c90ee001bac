"""What the benchmark tells a peer's server, by its environment, since each is started by its vendor's own command."""

from __future__ import annotations

import os
from pathlib import Path

from bench.serving.model import Model

CONCURRENCY = int(os.environ["BENCH_CONCURRENCY"])
"""Batches at once."""
MAX_BATCH = int(os.environ["BENCH_MAX_BATCH"])
"""Images of a batch, where the mode has batches."""
BATCH_WAIT_S = 0.005


def model() -> Model:
    return Model(Path(os.environ["BENCH_PACKAGE"]), os.environ["BENCH_VARIANT"], int(os.environ["BENCH_THREADS"]))
