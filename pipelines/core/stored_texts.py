"""A text for each image of a training, on disk until it is asked for: bytes [N] in a .npy file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Texts(Sequence[str]):
    def __init__(self, texts: NDArray[np.bytes_]) -> None:
        self._texts = texts

    def __len__(self) -> int:
        return len(self._texts)

    def __getitem__(self, position: Any) -> Any:
        if isinstance(position, slice):
            return [one.decode() for one in self._texts[position]]
        return self._texts[position].decode()


def write(path: Path, texts: Sequence[str]) -> None:
    np.save(path, np.array([one.encode() for one in texts], dtype=np.bytes_))


def load(path: Path, num_texts: int) -> Texts:
    """Mapped, so that a million of them take no memory; none at all cannot be mapped."""
    return Texts(np.load(path, mmap_mode="r" if num_texts else None, allow_pickle=False))
