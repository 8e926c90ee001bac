"""The history as a chain, streamed: what the audit log's examination reads."""

from __future__ import annotations

from collections.abc import Generator

from pipelines.adapters.database.connection import Row, connect
from pipelines.adapters.database.events import detail_text, from_row, hash_of
from pipelines.core.audit import Finding, Link
from pipelines.core.errors import IntegrityError

_GUARDS = frozenset({"history_rows", "history_table"})
"""The triggers that refuse edits."""
_FIRST = -(2**63)
"""Below every number that a row can be given, so that none escapes."""
BATCH = 2000
"""Rows fetched at once by a cursor on the server: memory does not grow with the history."""


def links(url: str, *, start: int = _FIRST) -> Generator[Link]:
    """The rows from `start` on, in order and as of one moment. Raises PlatformError, IntegrityError."""
    import psycopg

    # The text of `detail`, too: JSON of another form with the same meaning to us may mean something else to others.
    query = "SELECT *, detail::text AS detail_text FROM history WHERE seq >= %s ORDER BY seq"
    with connect(url) as connection, connection.cursor(name="history") as cursor:
        cursor.itersize = BATCH
        try:
            cursor.execute(query, [start])
        except psycopg.errors.UndefinedTable as error:
            raise IntegrityError(
                "there is no table `history`: `darkroom up` makes it, and where it has done so, the table was dropped"
            ) from error
        for row in cursor:
            yield _link(row)


def open_guards(url: str) -> list[Finding]:
    """Triggers that should refuse edits of the history and do not."""
    with connect(url) as connection:
        rows = connection.execute(
            "SELECT tgname FROM pg_trigger WHERE tgrelid = 'history'::regclass AND tgenabled IN ('O', 'A')"
        ).fetchall()
    missing = sorted(_GUARDS - {row["tgname"] for row in rows})
    text = (
        "trigger {} of table history is off or gone: `ALTER TABLE history ENABLE TRIGGER USER`, or make it as in 0001"
    )
    return [Finding(kind="open_table", seq=0, text=text.format(name)) for name in missing]


def _link(row: Row) -> Link:
    event = from_row(row)
    intact = row["detail_text"] == detail_text(event.detail) and event.hash == hash_of(row["previous_hash"], event)
    return Link(seq=event.seq, previous_hash=row["previous_hash"], hash=event.hash, intact=intact)
