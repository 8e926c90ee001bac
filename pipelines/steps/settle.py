"""`settle`: how long a dataset should still be quiet before a model is trained on it."""

from __future__ import annotations

from datetime import datetime

from pipelines.core import datasets
from pipelines.core.storage import Storage
from pipelines.core.values import Settled

POLL_S = 5.0
"""While an ingest run is under way its end is looked for this often, or once a cool-down if that is longer."""


def settle(storage: Storage, name: str, cool_down_s: float, now: datetime) -> Settled:
    """Seconds to wait before asking again; 0 when no ingest is under way and the head has not moved for a cool-down.

    So a backfill of a year, which moves the head 365 times, is trained on once. Two small reads, however old the
    dataset is. An ingest run that died counts for ten minutes after its last sign of life.
    """
    if next(datasets.active_runs(storage, name, now), None) is not None:
        return Settled(wait_s=max(POLL_S, cool_down_s))
    moved_at = datasets.read_head(storage, name).moved_at
    if not moved_at:
        return Settled(wait_s=0.0)
    quiet_s = (now - datetime.fromisoformat(moved_at)).total_seconds()
    return Settled(wait_s=max(0.0, cool_down_s - quiet_s))
