"""The nearest stored images, by SQL over pgvector: what the command and the online service both send.

Feast's own vector search answers with wrong rows (0.67). Parameters are PostgreSQL's own ($1), which every driver has;
a search is COUNT, TUNE and `nearest_sql`, in one transaction.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from pipelines.core.embedding import Embeddings
from pipelines.core.errors import NotFound
from pipelines.core.features import project_of

EXACT_ROWS = 100_000
"""Up to this many rows a search looks at all of them: 65 ms for 50,000."""
_WIDER = 4
"""So many times as many come from the index and are put in order by true distance: 2 ms, 99.2% of the ten nearest."""

COUNT = "SELECT greatest(reltuples, 0)::bigint FROM pg_class WHERE relname = $1"
"""About how many rows the table $1 has; no row where there is no such table."""
TUNE = "SELECT set_config('hnsw.ef_search', $1, true), set_config('enable_indexscan', $2, true)"

COLUMNS = ("entity_key", "feature_name", "vector_value", "event_ts")
"""What a search reads of a table."""

_TABLE = re.compile(r"[a-z][a-z0-9_]{0,62}")


@dataclass(frozen=True, kw_only=True)
class Neighbour:
    """A stored image near the asked one."""

    image_id: str
    similarity: float
    """Cosine, 1 for the same picture."""
    event_timestamp: datetime


def table_of(name: str, view: str) -> str:
    """Feast's name of the table that holds a dataset's view."""
    return f"{project_of(name)}_{view}"


def is_exact(num_rows: int) -> bool:
    """Whether all rows of a table are looked at, and not its index."""
    return num_rows <= EXACT_ROWS


def tuning(top: int, *, exact: bool) -> tuple[str, str]:
    """Parameters of TUNE."""
    return str(min(1000, max(200, _WIDER * top))), "off" if exact else "on"


def nearest_sql(table: str, dim: int) -> str:
    """Rows (image_id, cosine distance, event time), best first; ties in order of image_id.

    For `nearest_parameters`; `dim` is that of the vectors, and part of the text since the index is made for it.
    """
    if not _TABLE.fullmatch(table):
        raise ValueError(f"{table!r}: not the name of a view's table")
    distance = f"(vector_value::vector({int(dim)})) <=> $1::text::vector({int(dim)})"
    return (
        f"WITH found AS MATERIALIZED (SELECT entity_key, event_ts, {distance} AS distance "  # noqa: S608
        f"FROM \"{table}\" WHERE feature_name = 'embedding' ORDER BY {distance} LIMIT $2) "
        "SELECT right(encode(entity_key, 'escape'), 64), distance, event_ts FROM found "
        "ORDER BY distance, entity_key LIMIT $3"
    )


def nearest_parameters(vector: Embeddings, top: int) -> tuple[str, int, int]:
    """Of `nearest_sql`, for a unit vector [D]."""
    return "[" + ",".join(repr(float(value)) for value in vector) + "]", _WIDER * top, top


def neighbours(rows: Iterable[tuple[str, float, datetime]]) -> list[Neighbour]:
    """From the rows of `nearest_sql`."""
    return [
        Neighbour(image_id=image_id, similarity=1 - distance, event_timestamp=when.astimezone(UTC))
        for image_id, distance, when in rows
    ]


def nothing_stored(table: str) -> NotFound:
    """What to say where there is no such table."""
    return NotFound(f"online store: no table {table}; `darkroom run` stores the features of a dataset's images")
