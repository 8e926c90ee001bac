"""Checkpoints: all that a training needs to go on as if nothing had happened.

Each training has a folder of its own, named after its fingerprint. It holds the last two, `step-00001234-<16 hex
digits>.pt`, and the weights of the best epochs that they name,
`best-0007-<16 hex digits>.pt`. The digits begin the SHA-256 of the file's bytes, so that a torn or damaged file is told
from a good one; the one before it then takes its place. Nothing but tensors, numbers, texts and containers of these is
read (`weights_only`): a checkpoint executes nothing.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import pickle
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, cast

import torch
from torch import Tensor

log = logging.getLogger(__name__)

State = dict[str, Any]
Weights = Mapping[str, Tensor]

FORMAT = 2
"""Raised by whoever changes what a checkpoint holds: older ones are then not taken up."""
_KEPT = 2
_DIGITS = 16
_SHARE_OF_TIME = 0.006
_END_SHARE_OF_TIME = 0.009
"""With the last one, which is worth more; MLflow and observers have the rest of the hundredth that is promised."""
_SMALLEST_SAVE_S = 0.05
_BYTES_PER_S = 300e6
"""What one takes is reckoned by these until one was timed."""
_LONGEST_WAIT = 10
"""Intervals: what a kill may cost matters more than a hundredth of the time."""
_EPOCH_INTERVAL_S = 1.0
_END_INTERVAL_S = 10.0
"""Less than this is quicker done again than worth a file."""


class Checkpoints:
    """The checkpoints of one training, in a folder of its own, and when the next one is due."""

    def __init__(self, folder: Path, fingerprint: str, interval_s: float) -> None:
        """`fingerprint` says which training it is: what another has left is neither taken up nor touched. With an
        interval of 0 s every step is saved; otherwise saving takes less than a hundredth of the time, unless that were
        less than one checkpoint in ten intervals.
        """
        self._folder = folder / fingerprint[:_DIGITS]
        self.interval_s = interval_s
        self._has_warned = False
        self._kept: list[tuple[str, str]] = []
        """File names of checkpoints, newest last, and of the best weights that each names."""
        self.start(0)

    def start(self, num_bytes: int) -> None:
        """The first step is about to be taken, and a checkpoint will have about so many bytes."""
        self._began = self._saved_at = time.monotonic()  # what went before was no training that could be lost
        self._spent_s = 0.0
        self._save_s = max(_SMALLEST_SAVE_S, num_bytes / _BYTES_PER_S)

    def is_due(self, *, epoch_over: bool = False, training_over: bool = False) -> bool:
        """Whether saving pays now: within an epoch after the interval, at its end sooner, where its share of the time
        allows it.
        """
        if not self.interval_s:
            return True
        now = time.monotonic()
        waited_s = now - self._saved_at
        if waited_s >= self.interval_s * _LONGEST_WAIT:
            return True
        interval_s = min(_EPOCH_INTERVAL_S, self.interval_s) if epoch_over else self.interval_s
        share = _SHARE_OF_TIME
        if training_over:
            interval_s, share = _END_INTERVAL_S, _END_SHARE_OF_TIME
        return waited_s >= interval_s and self._spent_s + self._save_s <= share * (now - self._began)

    def save(self, step: int, state: State, best_epoch: int, best: Weights) -> None:
        """Write a checkpoint after `step` steps, and the best weights where they are new (epoch 0: there are none).

        A kill at any point leaves the checkpoints before as they were. So does a full disk: the training goes on, and
        saving is tried again when the next checkpoint is due.
        """
        began = time.monotonic()
        try:
            self._save(step, state, best_epoch, best)
            self._has_warned = False
        except OSError as error:
            if not self._has_warned:
                log.warning("%s: no checkpoint can be written (%s); the training goes on without", self._folder, error)
            self._has_warned = True
        self._saved_at = time.monotonic()
        self._save_s = self._saved_at - began
        self._spent_s += self._save_s

    def _save(self, step: int, state: State, best_epoch: int, best: Weights) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        stem = f"best-{best_epoch:04d}"
        known = next((name for _, name in self._kept if name.startswith(stem)), "")
        best_file = known or (_write(self._folder, stem, dict(best)) if best_epoch else "")
        table = {**state, "best_file": best_file}
        name = _write(self._folder, f"step-{step:08d}", table)
        self._kept = [*(one for one in self._kept if one[0] != name), (name, best_file)][-_KEPT:]
        self._tidy()

    def newest(self) -> tuple[bytes, bytes]:
        """The newest good checkpoint of this training and its best weights, for `opened`; empty where there are none.

        Warns of every file that is not what was written.
        """
        for path in sorted(self._folder.glob("step-*.pt"), reverse=True):
            data = _read(path)
            if not data:
                continue
            try:
                table = opened(data)
            except (pickle.UnpicklingError, RuntimeError):  # whole, but not written by `save`
                log.warning("%s: not a checkpoint, taking the one before", path, exc_info=True)
                continue
            best = _read(self._folder / table["best_file"]) if table["best_file"] else b""
            if table["best_file"] and not best:
                continue
            self._kept = [(path.name, table["best_file"])]
            return data, best
        return b"", b""

    def _tidy(self) -> None:
        """Remove what is neither kept nor named by what is kept, half-written files of killed processes included."""
        kept = {name for names in self._kept for name in names}
        for pattern in ("step-*", "best-*"):
            for path in self._folder.glob(pattern):
                if path.name not in kept:
                    path.unlink(missing_ok=True)


def opened(data: bytes) -> State:
    """What `save` was given, on the CPU; empty for no bytes."""
    return cast(State, torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)) if data else {}


class _Hashing:
    """A file that knows the digest of what was written to it, and why it could not be."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.sha256 = hashlib.sha256()
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        self.sha256.update(data)
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self._file.flush()


def _write(folder: Path, stem: str, table: State) -> str:
    """Write a file in one go, as far as anyone can see, and return its name."""
    temporary = folder / f"{stem}.{os.getpid()}.partial"
    try:
        with temporary.open("wb") as file:
            hashing = _Hashing(file)
            try:
                torch.save(table, cast(IO[bytes], hashing))
            except RuntimeError as error:  # torch's own, whatever the file raised
                raise hashing.error or error from error
            file.flush()
            os.fsync(file.fileno())
        path = folder / f"{stem}-{hashing.sha256.hexdigest()[:_DIGITS]}.pt"
        temporary.replace(path)
        return path.name
    finally:
        temporary.unlink(missing_ok=True)


def _read(path: Path) -> bytes:
    """The file's bytes; empty, with a warning, where they are not those that it is named after."""
    try:
        data = path.read_bytes()
    except OSError as error:
        log.warning("%s: unreadable checkpoint, taking the one before (%s)", path, error)
        return b""
    if hashlib.sha256(data).hexdigest()[:_DIGITS] != path.stem.rpartition("-")[2]:
        log.warning("%s: damaged checkpoint, taking the one before", path)
        return b""
    return data
