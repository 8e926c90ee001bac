"""Labels and sources of found images, from an index on this machine that follows the dataset's head.

The head is looked at every few seconds. While a newer one is read, which a process of its own does, questions are
answered by the index of the head before it, and the answer says which that was.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bentos.kit.errors import RequestRefused
from pipelines.core import datasets, labels
from pipelines.core.labels import Found
from pipelines.core.storage import Storage

LOOK_S = 2.0
"""Between looks at a dataset's head, and between tries to read it."""
_PATIENCE_S = 10.0
"""A first question waits so long for its dataset's index."""
_TRIES = 3
"""What was being read when it asked may be spoilt when it is there; then it is read once more."""
_MAX_KNOWN = 1000
"""Datasets whose state is remembered."""

logger = logging.getLogger("darkroom.similar")


class LabelsAway(RequestRefused):
    """There is no index of this dataset yet."""

    def __init__(self) -> None:
        detail = "the labels of this dataset are being read; try again"
        super().__init__(503, "labels_unavailable", detail, retry_after_s=5)


@dataclass
class _State:
    """Of one dataset."""

    looked_at: float = float("-inf")
    task: asyncio.Task[None] | None = None
    trouble: str = ""


class LabelIndex:
    """Belongs to one event loop."""

    def __init__(self, storage: Storage, cache: Path) -> None:
        self._storage, self._cache = storage, cache
        self._states: dict[str, _State] = {}
        self._one_at_a_time = asyncio.Semaphore(1)
        """Readers of manifests: each is a process of some 100 MB."""
        self._reader: asyncio.subprocess.Process | None = None

    async def find(self, name: str, image_ids: Sequence[str]) -> Found:
        """Labels and sources by image. Raises LabelsAway where no index of the dataset can be had in time."""
        path, state = labels.index_path(self._cache, self._storage, name), self._state(name)
        deadline = time.monotonic() + _PATIENCE_S
        for _ in range(_TRIES):
            found = await asyncio.to_thread(_asked, path, image_ids)
            due = time.monotonic() - state.looked_at >= LOOK_S
            if state.task is None and (due or (found is None and not state.trouble)):
                state.task = asyncio.create_task(self._follow(name, state))
            if found is not None:
                return found
            if state.task is None:
                break
            # It goes on when this request is cancelled: others wait for it too.
            await asyncio.wait({state.task}, timeout=max(0.0, deadline - time.monotonic()))
        raise LabelsAway

    async def close(self) -> None:
        tasks = [state.task for state in self._states.values() if state.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._reader is not None and self._reader.returncode is None:
            self._reader.kill()

    def _state(self, name: str) -> _State:
        if name not in self._states and len(self._states) >= _MAX_KNOWN:
            self._states = {name: state for name, state in self._states.items() if state.task is not None}
        return self._states.setdefault(name, _State())

    async def _follow(self, name: str, state: _State) -> None:
        """Look at the head, and read it where the index is of another. Trouble is told once."""
        trouble = "not read to the end"
        try:
            trouble = await self._updated(name)
        except Exception as error:  # whatever it is, the next look tries again
            trouble = f"{type(error).__name__}: {error}"
        finally:
            state.task = None
            state.looked_at = time.monotonic()
            if trouble and trouble != state.trouble:
                logger.warning("labels are not up to date", extra={"model_name": name, "reason": trouble})
            state.trouble = trouble

    async def _updated(self, name: str) -> str:
        """Why the index is not up to date; empty where it is."""
        path = labels.index_path(self._cache, self._storage, name)
        head, known = await asyncio.to_thread(self._digests, name, path)
        if head == known:
            return ""
        async with self._one_at_a_time:
            began = time.perf_counter()
            self._reader = reader = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "bentos.similar.indexing"),
                *(self._storage.uri, self._storage.endpoint_url or "", name, str(self._cache)),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
            )
            words = (await reader.communicate())[1].decode(errors="replace").strip().splitlines()
        if reader.returncode:
            return words[-1] if words else f"the reader of manifests ended with status {reader.returncode}"
        seconds = round(time.perf_counter() - began, 2)
        logger.info("labels read", extra={"model_name": name, "dataset_digest": head, "seconds": seconds})
        return ""

    def _digests(self, name: str, path: Path) -> tuple[str, str | None]:
        """Of the head, and of the one that the index is of."""
        return datasets.read_head(self._storage, name).digest(), labels.head_of(path)


def _asked(path: Path, image_ids: Sequence[str]) -> Found | None:
    try:
        return labels.find(path, image_ids)
    except (sqlite3.Error, TypeError):  # no file, or none that was finished
        return None
