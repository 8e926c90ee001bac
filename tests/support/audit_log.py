"""An audit log of a test's own: rows by the real writer, anchors by the real thread, attacks as the superuser."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import parse_qs, unquote, urlsplit

import psycopg
from serving_platform import ACTOR, wait_until

from pipelines.adapters import database
from pipelines.local import secrets
from pipelines.local.anchoring import Anchoring, kept_anchor
from pipelines.settings import Settings

PERIOD_S = 0.02


def grow(url: str, num_rows: int) -> int:
    """Append rows; returns the last one's number."""
    for _ in range(num_rows):
        last = database.record(url, "digits", "rejected", {"verdict": "worse", "difference": -0.0125}, ACTOR)
    return last.seq


@contextmanager
def anchoring(settings: Settings) -> Iterator[Anchoring]:
    """The supervisor's thread, with a short period."""
    running = Anchoring(settings, PERIOD_S)
    running.start()
    try:
        yield running
    finally:
        running.end()


def grow_and_anchor(settings: Settings, *sizes: int) -> None:
    """Rows in batches, one anchor after each."""
    for size in sizes:
        last = grow(settings.database_url("darkroom"), size)
        with anchoring(settings):
            wait_until(lambda last=last: anchored_seq(settings) == last)  # type: ignore[misc]


def anchored_seq(settings: Settings) -> int:
    found = kept_anchor(settings)
    return found.seq if found else 0


@contextmanager
def superuser(postgres_settings: Settings, url: str, *, guarded: bool = False) -> Iterator[psycopg.Connection]:
    """Whom no trigger stops unless `guarded`, in the schema of `url`; committed at the end."""
    parts = urlsplit(url)
    with psycopg.connect(
        host=parts.hostname,
        port=parts.port,
        dbname="darkroom",
        user="postgres",
        password=postgres_settings.secret(secrets.POSTGRES_SUPERUSER),
        options=unquote(parse_qs(parts.query)["options"][0]),
    ) as connection:
        if not guarded:
            connection.execute("SET session_replication_role = replica")
        yield connection
