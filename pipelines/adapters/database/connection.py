"""Connections to Darkroom's own PostgreSQL database, and its schema: numbered files, each applied once and in order."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from typing import TYPE_CHECKING, Any

from pipelines.core.errors import PlatformError

if TYPE_CHECKING:
    import psycopg

# Advisory locks: PostgreSQL releases them when their holder is killed.
MIGRATIONS_LOCK = 7_201
HISTORY_LOCK = 7_202
MODEL_LOCKS = 7_203

Row = dict[str, Any]


@contextmanager
def connect(url: str) -> Iterator[psycopg.Connection[Row]]:
    """A connection in a transaction: committed at the end, rolled back on an error. Raises PlatformError."""
    import psycopg
    from psycopg.rows import dict_row

    try:
        with psycopg.connect(url, connect_timeout=5, row_factory=dict_row, application_name="darkroom") as connection:
            yield connection
    except psycopg.OperationalError as error:
        raise PlatformError(f"PostgreSQL does not answer ({error}); `darkroom up` starts it") from error


def migrate(url: str) -> list[str]:
    """Apply the migrations that the database has not seen, one transaction for all. Returns their names."""
    folder = resources.files("pipelines.adapters.database") / "migrations"
    known = sorted((one.name, one.read_text("utf-8")) for one in folder.iterdir() if one.name.endswith(".sql"))
    with connect(url) as connection:
        connection.execute("SELECT pg_advisory_xact_lock(%s)", [MIGRATIONS_LOCK])
        connection.execute(
            "CREATE TABLE IF NOT EXISTS migrations (name text PRIMARY KEY, at timestamptz NOT NULL DEFAULT now())"
        )
        applied = {row["name"] for row in connection.execute("SELECT name FROM migrations")}
        new = [(name, text) for name, text in known if name not in applied]
        for name, text in new:
            connection.execute(text.encode())
            connection.execute("INSERT INTO migrations (name) VALUES (%s)", [name])
    return [name for name, _ in new]
