"""Which release a database's schema was migrated to, remembered in the database's own comment."""

from __future__ import annotations

import psycopg
from psycopg import sql

_PREFIX = "schema of "


def version_of(url: str) -> str | None:
    """What `set_version` wrote; None where nothing did, or the database is not ours to read."""
    with psycopg.connect(url, connect_timeout=5) as connection:
        row = connection.execute(
            "SELECT shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = current_database()"
        ).fetchone()
    comment = row[0] if row else None
    return comment.removeprefix(_PREFIX) if comment and comment.startswith(_PREFIX) else None


def set_version(url: str, version: str) -> None:
    """Remember it. A role that does not own its database cannot, and migrates at every start instead."""
    with psycopg.connect(url, connect_timeout=5) as connection:
        name = sql.Identifier(connection.info.dbname)
        try:
            connection.execute(sql.SQL("COMMENT ON DATABASE {} IS {}").format(name, sql.Literal(_PREFIX + version)))
        except psycopg.errors.InsufficientPrivilege:
            return
