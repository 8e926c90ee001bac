"""Which weights a training starts from: part of its identity, so it is told without torch."""

from __future__ import annotations

import hashlib
from pathlib import Path

from pipelines.core.recipe import TORCHVISION, Model


def path_of(model: Model) -> Path | None:
    """The file that model.weights names, `~` being the home folder; None where it names no file."""
    return Path(model.weights).expanduser() if model.weights not in ("", TORCHVISION) else None


def identity(model: Model) -> str:
    """SHA-256 of the file, or TORCHVISION; empty for none, and for a missing file, which the training will refuse."""
    path = path_of(model)
    if path is None:
        return model.weights
    if not path.is_file():
        return ""
    return sha256_of(path)


def sha256_of(path: Path) -> str:
    """Of a weights file; a bare training machine has no store, whose module could do it too."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
