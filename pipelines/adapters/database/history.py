"""The history, which is the audit log: append-only, each row's hash over the row before, so that every edit shows.

PostgreSQL refuses to update or delete a row; whoever takes that refusal away still cannot make the hashes fit without
rewriting every later row, and whoever does that contradicts the anchors (`core.anchors`).
"""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from pipelines.adapters.database.chain import BATCH
from pipelines.adapters.database.connection import HISTORY_LOCK, Row, connect
from pipelines.adapters.database.events import Event, detail_text, from_row, hash_of
from pipelines.core.anchors import GENESIS
from pipelines.core.deployments import Withdrawn

if TYPE_CHECKING:
    import psycopg


def record(url: str, model: str, event: str, detail: Mapping[str, Any], actor: str) -> Event:
    """Append an event that is no deployment, such as a key that was revoked. `model` is empty where it is of none."""
    with connect(url) as connection:
        return append(connection, model, None, event, detail, actor)


def record_once(url: str, model: str, event: str, detail: Mapping[str, Any], actor: str, *, key: str) -> None:
    """The same, unless the model has such an event with this `detail[key]`: however often a step is tried."""
    query = "SELECT 1 FROM history WHERE model = %s AND event = %s AND detail->>%s = %s LIMIT 1"
    with connect(url) as connection:
        _lock(connection)
        if connection.execute(query, [model, event, key, str(detail[key])]).fetchone() is None:
            append(connection, model, None, event, detail, actor)


def record_change(url: str, model: str, event: str, detail: Mapping[str, Any], actor: str, *, key: str) -> None:
    """The same, unless the model's last such event has this `detail[key]`: nothing has changed since."""
    query = "SELECT detail->>%s AS value FROM history WHERE model = %s AND event = %s ORDER BY seq DESC LIMIT 1"
    with connect(url) as connection:
        _lock(connection)
        last = connection.execute(query, [key, model, event]).fetchone()
        if last is None or last["value"] != str(detail[key]):
            append(connection, model, None, event, detail, actor)


def history(
    url: str, model: str | None = None, *, actor: str = "", since: str = "", limit: int | None = None
) -> Generator[Event]:
    """Oldest first, streamed: of a model, of actors that begin so, since a moment (UTC, ISO 8601), the last so many."""
    from psycopg import sql

    chosen: sql.SQL | sql.Composed = sql.SQL(
        "SELECT * FROM history WHERE (%(model)s::text IS NULL OR model = %(model)s)"
        """ AND starts_with(actor, %(actor)s) AND at COLLATE "C" >= %(since)s"""
    )
    if limit is not None:
        chosen = sql.SQL("SELECT * FROM ({} ORDER BY seq DESC LIMIT %(limit)s) AS newest").format(chosen)
    with connect(url) as connection, connection.cursor(name="history") as cursor:
        cursor.itersize = BATCH
        values = {"model": model, "actor": actor, "since": since, "limit": limit}
        cursor.execute(chosen + sql.SQL(" ORDER BY seq"), values)
        for row in cursor:
            yield from_row(row)


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


def append(
    connection: psycopg.Connection[Row],
    model: str,
    deployment_id: int | None,
    event: str,
    detail: Mapping[str, Any],
    actor: str,
) -> Event:
    """Add a row in the connection's transaction. Who appends at the same time waits for its end."""
    _lock(connection)
    last = connection.execute("SELECT seq, hash FROM history ORDER BY seq DESC LIMIT 1").fetchone()
    previous_hash = last["hash"] if last else GENESIS
    row = Event(
        seq=last["seq"] + 1 if last else 1,
        at=datetime.now(UTC).isoformat(),
        actor=actor,
        model=model,
        deployment_id=deployment_id,
        event=event,
        detail=json.loads(detail_text(detail)),
        hash="",
    )
    row = replace(row, hash=hash_of(previous_hash, row))
    connection.execute(
        "INSERT INTO history (seq, at, actor, model, deployment_id, event, detail, previous_hash, hash)"
        " VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s)",
        [row.seq, row.at, actor, model, deployment_id, event, detail_text(row.detail), previous_hash, row.hash],
    )
    return row


def _lock(connection: psycopg.Connection[Row]) -> None:
    """Until the end of the transaction; taking it again is free."""
    connection.execute("SELECT pg_advisory_xact_lock(%s)", [HISTORY_LOCK])
