"""A serving process's part of a spool: files within bounds, so that no log fills a disk. The format is core's."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path

from pipelines.core import prediction_spool
from pipelines.core.prediction_spool import SEGMENT_BYTES

SEGMENT_S = 10.0
"""A file is finished after this time at the latest, so that it can be collected."""
_LOCK = ".writers.lock"
MIN_FREE_BYTES = 500_000_000
"""Of the disk: with less, nothing is written."""


class SpoolFull(Exception):
    """There is no room, even after what is oldest was given up."""


@dataclass
class SpoolWriter:
    """Belongs to one thread. The spool's bound is for all processes that write into it."""

    folder: Path
    max_bytes: int
    """Of all files in the spool; what other processes still write counts as a whole file."""
    num_given_up: int = 0
    """Predictions in finished files that were dropped to make room."""
    _file: int | None = None
    _size_bytes: int = 0
    _finish_at: float = field(default=0.0, repr=False)

    def write(self, frame: bytes) -> None:
        """Append a frame; once this returns it survives the end of the process. Raises SpoolFull, OSError."""
        if self._file is not None and self._size_bytes + len(frame) > SEGMENT_BYTES:
            self.finish()
        if self._file is None:
            self._begin(len(frame))
        assert self._file is not None
        try:
            rest = memoryview(frame)
            while rest:
                rest = rest[os.write(self._file, rest) :]
        except OSError:
            # A frame that is not whole hides those after it.
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, self._size_bytes)
            self.finish()
            raise
        self._size_bytes += len(frame)

    def wait_s(self) -> float | None:
        """Until the file under way is to be finished; None without one."""
        return None if self._file is None else max(0.0, self._finish_at - time.monotonic())

    def finish_if_due(self) -> None:
        if self._file is not None and time.monotonic() >= self._finish_at:
            self.finish()

    def finish(self) -> None:
        """Leave the file under way, if there is one, to the collector."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _begin(self, first_bytes: int) -> None:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (self.folder / _LOCK).open("w") as lock:
            # Else two processes could both find the last room.
            fcntl.flock(lock, fcntl.LOCK_EX)
            self._make_room(max(SEGMENT_BYTES, first_bytes))
            self._file = prediction_spool.create(self.folder)[0]
        self._size_bytes = os.fstat(self._file).st_size
        self._finish_at = time.monotonic() + SEGMENT_S

    def _make_room(self, num_bytes: int) -> None:
        free = shutil.disk_usage(self.folder).free
        if free - num_bytes < MIN_FREE_BYTES:
            raise SpoolFull(f"{free // 10**6:,} MB are free on the disk of {self.folder}")
        finished: list[tuple[Path, int]] = []
        used = 0
        for path in prediction_spool.everything(self.folder):
            with contextlib.suppress(FileNotFoundError), prediction_spool.taken(path) as mine:
                size = path.stat().st_size
                used += size if mine else max(size, SEGMENT_BYTES)
                if mine and path.parent == self.folder:  # below it lies what is being collected
                    finished.append((path, size))
        for path, size in finished:
            if used + num_bytes <= self.max_bytes:
                break
            used -= self._give_up(path, size)
        if used + num_bytes > self.max_bytes:
            raise SpoolFull(f"{self.folder} holds {used // 10**6:,} MB that were not collected yet")

    def _give_up(self, path: Path, size: int) -> int:
        """Bytes that were freed: none where the collector was quicker."""
        with prediction_spool.taken(path) as mine:
            if not mine:
                return 0
            self.num_given_up += prediction_spool.num_records(path.read_bytes())
            path.unlink()
            return size
