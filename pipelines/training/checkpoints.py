"""Checkpoints: all that a training needs to go on as if nothing had happened."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipelines.training.observers import Epoch

log = logging.getLogger(__name__)

State = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """The state after an epoch. Random numbers are derived from seed and epoch, so no generator is in here."""

    history: tuple[Epoch, ...]
    network: State
    optimizer: State
    best: Mapping[str, Tensor]
    """The network's state after its best epoch."""


def save(path: Path, checkpoint: Checkpoint, fingerprint: str) -> None:
    """Replace the file atomically; a kill leaves the old checkpoint or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = {
        "fingerprint": fingerprint,
        "history": [asdict(epoch) for epoch in checkpoint.history],
        "network": dict(checkpoint.network),
        "optimizer": dict(checkpoint.optimizer),
        "best": dict(checkpoint.best),
    }
    temporary = path.with_suffix(f".{os.getpid()}.partial")
    try:
        with temporary.open("wb") as file:
            torch.save(table, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def load(path: Path, fingerprint: str) -> Checkpoint | None:
    """The checkpoint, or None where there is none of this very training (recipe, data, torch)."""
    if not path.is_file():
        return None
    try:
        table = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # damaged by a full disk or a crash of the machine: training from the start costs only time
        log.warning("%s: unreadable checkpoint, starting over", path, exc_info=True)
        return None
    if table["fingerprint"] != fingerprint:
        return None
    return Checkpoint(
        history=tuple(Epoch(**epoch) for epoch in table["history"]),
        network=table["network"],
        optimizer=table["optimizer"],
        best=table["best"],
    )
