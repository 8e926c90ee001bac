"""The embeddings of a training on disk, beside the labels and weights of its pixel set. Only NumPy is needed.

embedded.json               the feature view they come from, and how many rows each split has; written last
<split>-embeddings.npy      float32 [N, D], row by row those of <split>-labels.npy, -weights.npy and -ids.npy
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipelines.core.errors import IntegrityError

INDEX = "embedded.json"


@dataclass(frozen=True, kw_only=True)
class EmbeddedSplit:
    embeddings: NDArray[np.float32]
    """[N, D], every row of unit length; mapped from disk."""
    labels: NDArray[np.int64]
    weights: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, kw_only=True)
class Embedded:
    view: str
    """Feature view: its name stands for what computed the embeddings."""
    splits: Mapping[str, EmbeddedSplit]


def embeddings_file(folder: Path, split: str) -> Path:
    return folder / f"{split}-embeddings.npy"


def write_index(folder: Path, *, view: str, splits: Mapping[str, int]) -> None:
    (folder / INDEX).write_text(json.dumps({"view": view, "splits": dict(splits)}, indent=1, sort_keys=True) + "\n")


def load(folder: Path) -> Embedded | None:
    """None where the folder holds no embeddings; raises IntegrityError where its files do not fit together."""
    if not (folder / INDEX).is_file():
        return None
    table = json.loads((folder / INDEX).read_text("utf-8"))
    splits = {split: _load_split(folder, split, num_rows) for split, num_rows in table["splits"].items()}
    return Embedded(view=table["view"], splits=splits)


def _load_split(folder: Path, split: str, num_rows: int) -> EmbeddedSplit:
    path = embeddings_file(folder, split)
    # Copy-on-write: torch warns about arrays that it could not write to. An empty file cannot be mapped.
    embeddings = np.load(path, mmap_mode="c" if num_rows else None, allow_pickle=False)
    if embeddings.dtype != np.float32 or embeddings.ndim != 2:
        raise IntegrityError(f"{path}: expected float32 [N, D]")
    found = EmbeddedSplit(
        embeddings=embeddings,
        labels=np.load(folder / f"{split}-labels.npy", allow_pickle=False),
        weights=np.load(folder / f"{split}-weights.npy", allow_pickle=False),
    )
    if {len(embeddings), len(found.labels), len(found.weights)} != {num_rows}:
        raise IntegrityError(f"{folder}: the arrays of split {split} do not have the {num_rows} rows of {INDEX}")
    return found
