"""API keys: made, listed, revoked. The keys themselves are shown once and never stored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from pipelines.adapters.database.connection import Row, connect
from pipelines.adapters.database.history import append
from pipelines.core.access import digest_of
from pipelines.core.errors import NotFound, UserError

_ID_LENGTH = 12


@dataclass(frozen=True, kw_only=True)
class ApiKey:
    """What is known of a key."""

    id: str
    name: str
    role: str
    models: tuple[str, ...]
    """The only models it is good for; empty: all."""
    per_minute: int | None
    """Images a minute; None: no limit."""
    per_day: int | None
    created_by: str
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None

    def state(self, now: datetime) -> str:
        if self.revoked_at is not None:
            return "revoked"
        return "expired" if self.expires_at is not None and self.expires_at <= now else "active"


@dataclass(frozen=True, kw_only=True)
class Grant:
    """What a new key shall be good for."""

    name: str
    role: str
    models: Sequence[str] = ()
    per_minute: int | None = None
    per_day: int | None = None
    expires_at: datetime | None = None


def create_key(url: str, key: str, grant: Grant, *, actor: str) -> ApiKey:
    """Store the digest of a key. Raises UserError where an active key has the name."""
    from psycopg.errors import UniqueViolation

    with connect(url) as connection:
        try:
            row = connection.execute(
                "INSERT INTO api_keys (id, digest, name, role, models, per_minute, per_day, created_by, expires_at)"
                " VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s) RETURNING *",
                [
                    *(digest_of(key)[:_ID_LENGTH], digest_of(key), grant.name, grant.role, list(grant.models)),
                    *(grant.per_minute, grant.per_day, actor, grant.expires_at),
                ],
            ).fetchone()
        except UniqueViolation as error:
            raise UserError(
                f"a key called {grant.name!r} is active; revoke it (`darkroom keys revoke {grant.name}`) "
                "or take another name"
            ) from error
        assert row is not None
        created = _key(row)
        detail = {"id": created.id, "name": grant.name, "role": grant.role, "models": list(grant.models)}
        append(connection, "", None, "key_created", detail, actor)
    return created


def ensure_key(url: str, key: str, grant: Grant, *, actor: str) -> None:
    """Like `create_key`, where the key is not known yet; one that was revoked stays so."""
    with connect(url) as connection:
        known = connection.execute("SELECT 1 FROM api_keys WHERE digest = %s", [digest_of(key)]).fetchone()
    if known is None:
        create_key(url, key, grant, actor=actor)


def api_keys(url: str) -> list[ApiKey]:
    """All, newest first."""
    with connect(url) as connection:
        rows = connection.execute("SELECT * FROM api_keys ORDER BY created_at DESC, id").fetchall()
    return [_key(row) for row in rows]


def revoke_key(url: str, name_or_id: str, *, actor: str) -> ApiKey:
    """Serving processes refuse the key within two seconds. Raises NotFound where no active key has the name or id."""
    with connect(url) as connection:
        row = connection.execute(
            "UPDATE api_keys SET revoked_at = now() WHERE revoked_at IS NULL AND (name = %(key)s OR id = %(key)s)"
            " RETURNING *",
            {"key": name_or_id},
        ).fetchone()
        if row is None:
            raise NotFound(f"no active key is called {name_or_id!r}; `darkroom keys list` shows names and ids")
        revoked = _key(row)
        append(connection, "", None, "key_revoked", {"id": revoked.id, "name": revoked.name}, actor)
    return revoked


def allow_serving(url: str, role: str) -> None:
    """Let the role of serving processes call what they need, and nothing else."""
    from psycopg import sql

    name = sql.Identifier(role)
    with connect(url) as connection:
        row = connection.execute("SELECT current_schema() AS name").fetchone()
        assert row is not None
        connection.execute(sql.SQL("GRANT USAGE ON SCHEMA {} TO {}").format(sql.Identifier(row["name"]), name))
        # Bentos that were built before there was find_active_key call find_api_key.
        functions = ("find_active_key(text)", "find_api_key(text)", "add_usage(text[], date, bigint[])")
        for function in functions:
            connection.execute(sql.SQL("GRANT EXECUTE ON FUNCTION {} TO {}").format(sql.SQL(function), name))


def _key(row: Row) -> ApiKey:
    found = {name: row[name] for name in ApiKey.__dataclass_fields__}
    return ApiKey(**{**found, "models": tuple(row["models"])})
