"""The history: append-only, each row's hash over the one before it, so that nobody edits it unnoticed.

PostgreSQL refuses to update or delete a row; whoever takes that refusal away still cannot make the hashes fit without
rewriting every later row.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from pipelines.adapters.database.connection import HISTORY_LOCK, Row, connect
from pipelines.core.deployments import Withdrawn
from pipelines.core.errors import IntegrityError
from pipelines.core.results import digest_json

if TYPE_CHECKING:
    import psycopg

_GENESIS = "0" * 64


@dataclass(frozen=True, kw_only=True)
class Event:
    """One row of the history."""

    seq: int
    at: str
    model: str
    deployment_id: int | None
    event: str
    detail: Mapping[str, Any]
    hash: str


def record(url: str, model: str, event: str, detail: Mapping[str, Any]) -> Event:
    """Append an event that is no deployment, such as a candidate that the gate rejected."""
    with connect(url) as connection:
        return append(connection, model, None, event, detail)


def history(url: str, model: str | None = None) -> list[Event]:
    """Oldest first."""
    with connect(url) as connection:
        rows = connection.execute(
            "SELECT * FROM history WHERE %(model)s::text IS NULL OR model = %(model)s ORDER BY seq", {"model": model}
        ).fetchall()
    return [_event(row) for row in rows]


def withdrawn(url: str, model: str) -> dict[int, Withdrawn]:
    """Versions that a rollback took away, without those that have served again since."""
    found: dict[int, Withdrawn] = {}
    for one in history(url, model):
        if not one.event.endswith("_live"):
            continue
        version, replaced = one.detail["version"], one.detail.get("replaced_version", one.detail["version"])
        found.pop(version, None)
        if one.event == "rollback_live" and replaced != version:
            found[replaced] = Withdrawn(version=replaced, returned_to=version, at=one.at)
    return found


def verify_history(url: str) -> int:
    """Number of rows in the chain. Raises IntegrityError at the first row that was changed, removed or put in."""
    previous_hash, expected = _GENESIS, 1
    with connect(url) as connection:
        for row in connection.execute("SELECT * FROM history ORDER BY seq"):
            event = _event(row)
            if event.seq != expected:
                raise IntegrityError(f"history row {expected} is missing")
            if row["previous_hash"] != previous_hash or event.hash != _hash(previous_hash, event):
                raise IntegrityError(f"history row {event.seq} does not match its hash: it was changed after the fact")
            previous_hash, expected = event.hash, expected + 1
    return expected - 1


def append(
    connection: psycopg.Connection[Row], model: str, deployment_id: int | None, event: str, detail: Mapping[str, Any]
) -> Event:
    connection.execute("SELECT pg_advisory_xact_lock(%s)", [HISTORY_LOCK])
    last = connection.execute("SELECT seq, hash FROM history ORDER BY seq DESC LIMIT 1").fetchone()
    previous_hash = last["hash"] if last else _GENESIS
    row = Event(
        seq=last["seq"] + 1 if last else 1,
        at=datetime.now(UTC).isoformat(),
        model=model,
        deployment_id=deployment_id,
        event=event,
        detail=json.loads(json.dumps(detail)),
        hash="",
    )
    hash_ = _hash(previous_hash, row)
    connection.execute(
        "INSERT INTO history (seq, at, model, deployment_id, event, detail, previous_hash, hash)"
        " VALUES (%s, %s, %s, %s, %s, %s, %s, %s)",
        [row.seq, row.at, model, deployment_id, event, json.dumps(row.detail), previous_hash, hash_],
    )
    return Event(**{**asdict(row), "hash": hash_})


def _hash(previous_hash: str, event: Event) -> str:
    return digest_json({**asdict(event), "hash": previous_hash})


def _event(row: Row) -> Event:
    return Event(**{key: row[key] for key in Event.__dataclass_fields__})
