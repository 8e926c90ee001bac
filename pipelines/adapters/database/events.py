"""A row of the history, and what its hash covers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pipelines.adapters.database.connection import Row
from pipelines.core.results import digest_json


@dataclass(frozen=True, kw_only=True)
class Event:
    """Who did what to which model, and when."""

    seq: int
    at: str
    """UTC, ISO 8601."""
    actor: str
    """See core.actors; empty in rows from before actors were written down."""
    model: str
    """Empty where the event is of no model."""
    deployment_id: int | None
    event: str
    detail: Mapping[str, Any]
    hash: str


def from_row(row: Row) -> Event:
    return Event(**{key: row[key] for key in Event.__dataclass_fields__})


def hash_of(previous_hash: str, event: Event) -> str:
    """SHA-256 over the row and the hash of the row before it; an empty actor is left out, as it was before actors."""
    covered = {**asdict(event), "hash": previous_hash}
    if not event.actor:
        del covered["actor"]
    return digest_json(covered)


def detail_text(detail: Mapping[str, Any]) -> str:
    """The one text that a detail is stored as."""
    return json.dumps(detail)
