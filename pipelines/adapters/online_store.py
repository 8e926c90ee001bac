"""The online store's tables, written and searched by SQL; Feast's rows are encoded here byte for byte, without Feast.

Feast writes 3,400 images a second row by row; a COPY into a temporary table and one upsert a batch is several times
faster, and a test proves that the content is what `FeatureStore.write_to_online_store` would have written. The nearest
neighbours are one query over pgvector (`core.neighbours`).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING

import numpy as np
import psycopg
from psycopg import sql

from pipelines.core import neighbours
from pipelines.core.embedding import Embeddings
from pipelines.core.errors import PlatformError
from pipelines.core.features import ROW_KEYS, entity_key
from pipelines.core.neighbours import Neighbour
from pipelines.settings import SEARCH_ROLE

if TYPE_CHECKING:
    import pyarrow as pa  # 50 MB that the supervisor, which only grants rights here, has no use for

_COLUMNS = ("entity_key", "feature_name", "value", "value_text", "vector_value", "event_ts", "created_ts")
_POSTGRES_EPOCH_US = 946_684_800_000_000
"""Microseconds from 1970 to 2000, where PostgreSQL's binary timestamps start."""
_COPY_HEADER = b"PGCOPY\n\xff\r\n\0" + struct.pack(">ii", 0, 0)
_COPY_END = struct.pack(">h", -1)
_NULL = struct.pack(">i", -1)
_REBUILD_SHARE = 0.5
"""A load of more than this share of the table drops the vector index and builds it anew: 5 times faster."""


class OnlineStore:
    """Rows of one recipe's views in PostgreSQL."""

    def __init__(self, url: str, name: str) -> None:
        self._url = url
        self._name = name

    def table(self, view: str) -> str:
        """Feast's name of the view's table."""
        return neighbours.table_of(self._name, view)

    @contextmanager
    def _connect(self) -> Iterator[psycopg.Connection]:
        try:
            connection = psycopg.connect(self._url, connect_timeout=10, application_name="darkroom-features")
        except psycopg.OperationalError as error:
            raise PlatformError(
                f"feature store: PostgreSQL does not answer ({error}); `darkroom up` starts it"
            ) from error
        with connection:
            yield connection

    @contextmanager
    def loading(self, view: str, num_rows: int, dim: int | None) -> Iterator[Writer]:
        """A writer for about `num_rows` images of a view. `dim` is the width of its vectors, None where it has none.

        A vector index is dropped before a load that is large against the table, and is there afterwards in any case.
        """
        with self._connect() as connection:
            stored = self._count(connection, view)
            yield Writer(connection, self.table(view), num_rows=num_rows, stored=stored, index=self._index(view))
            if dim is not None:
                self._build_index(connection, view, dim)

    def _count(self, connection: psycopg.Connection, view: str) -> int:
        with psycopg.RawCursor(connection) as cursor:
            row = cursor.execute(neighbours.COUNT, (self.table(view),)).fetchone()
        if row is None:
            raise neighbours.nothing_stored(self.table(view))
        return int(row[0])

    def _index(self, view: str) -> str:
        return f"{self.table(view)[:58]}_hnsw"

    def _build_index(self, connection: psycopg.Connection, view: str, dim: int) -> None:
        connection.execute("SET LOCAL maintenance_work_mem = '256MB'")
        _lock(connection, self.table(view))
        connection.execute(
            sql.SQL(
                "CREATE INDEX IF NOT EXISTS {} ON {} USING hnsw ((vector_value::vector({})) vector_cosine_ops) "
                "WITH (m = 12, ef_construction = 40) WHERE feature_name = 'embedding'"
            ).format(sql.Identifier(self._index(view)), sql.Identifier(self.table(view)), sql.Literal(dim))
        )
        connection.execute(sql.SQL("ANALYZE {}").format(sql.Identifier(self.table(view))))
        _allow_search(connection, self.table(view), SEARCH_ROLE)
        connection.commit()

    def remove(self, view: str, image_ids: Sequence[str], until: datetime) -> None:
        """Drop images whose stored event time is not after `until`."""
        with self._connect() as connection:
            for start in range(0, len(image_ids), 10_000):
                keys = [entity_key(image_id) for image_id in image_ids[start : start + 10_000]]
                connection.execute(
                    sql.SQL("DELETE FROM {} WHERE entity_key = ANY(%s) AND event_ts <= %s").format(
                        sql.Identifier(self.table(view))
                    ),
                    (keys, until),
                )
                connection.commit()

    def nearest(self, view: str, vector: Embeddings, top: int, *, exact: bool | None = None) -> list[Neighbour]:
        """The stored images nearest to a unit vector [D], best first; ties in order of image_id.

        `exact` compares with every row; otherwise the vector index is asked. By default the number of rows decides.
        """
        with self._connect() as connection, psycopg.RawCursor(connection) as cursor:
            if exact is None:
                exact = neighbours.is_exact(self._count(connection, view))
            cursor.execute(neighbours.TUNE, neighbours.tuning(top, exact=exact))
            query = neighbours.nearest_sql(self.table(view), len(vector))
            rows = cursor.execute(query.encode(), neighbours.nearest_parameters(vector, top)).fetchall()
        return neighbours.neighbours(rows)


def allow_search(url: str, role: str) -> None:
    """Let a role search the embeddings that are stored already; each load lets it search what it loads.

    It may read the columns that a search looks at, and nothing else. Raises PlatformError.
    """
    try:
        with psycopg.connect(url, connect_timeout=10, application_name="darkroom-features") as connection:
            views = connection.execute(
                "SELECT tablename FROM pg_tables WHERE schemaname = 'public' AND tableowner = current_user "
                "AND tablename LIKE '%\\_image\\_embedding\\_%'"
            )
            for (table,) in views.fetchall():
                _lock(connection, table)
                _allow_search(connection, table, role)
    except psycopg.Error as error:
        raise PlatformError(f"feature store: {role} is not allowed to search it ({error})") from error


def _allow_search(connection: psycopg.Connection, table: str, role: str) -> None:
    """Where the role exists: on a server that is not ours it may have another name, and rights of its own."""
    lacks = connection.execute(
        "SELECT 1 FROM pg_roles WHERE rolname = %(role)s "
        "AND NOT has_column_privilege(rolname, %(table)s::regclass, 'vector_value', 'SELECT')",
        {"role": role, "table": table},
    ).fetchone()
    if lacks:
        connection.execute(
            sql.SQL("GRANT SELECT ({}) ON {} TO {}").format(
                sql.SQL(", ").join(map(sql.Identifier, neighbours.COLUMNS)), sql.Identifier(table), sql.Identifier(role)
            )
        )


def _lock(connection: psycopg.Connection, table: str) -> None:
    """Until the transaction ends, changes of a table's indexes are this connection's."""
    connection.execute("SELECT pg_advisory_xact_lock(hashtext(%s))", (table,))


class Writer:
    """Upserts batches; each is one transaction, and a newer event time is never replaced by an older one."""

    def __init__(self, connection: psycopg.Connection, table: str, *, num_rows: int, stored: int, index: str) -> None:
        self._connection = connection
        self._name = table
        self._table = sql.Identifier(table)
        self._num_rows = num_rows
        self._stored = stored
        self._index = index
        self._first = True

    def _drop_index_for_much(self) -> None:
        """Drop the vector index if, as the first batch tells, most of a large load is new."""
        row = self._connection.execute(
            sql.SQL(
                "SELECT avg((old.entity_key IS NULL)::int) FROM incoming "
                "LEFT JOIN {} AS old USING (entity_key, feature_name)"
            ).format(self._table)
        ).fetchone()
        new = float(row[0] or 0) if row else 0.0
        if new * self._num_rows > _REBUILD_SHARE * self._stored:
            _lock(self._connection, self._name)
            self._connection.execute(sql.SQL("DROP INDEX IF EXISTS {}").format(sql.Identifier(self._index)))

    def write(self, rows: pa.Table) -> None:
        """Upsert rows: ROW_KEYS and feature columns (float32, int64, lists of float32)."""
        columns = sql.SQL(", ").join(sql.Identifier(column) for column in _COLUMNS)
        changes = sql.SQL(", ").join(
            sql.SQL("{0} = EXCLUDED.{0}").format(sql.Identifier(column)) for column in _COLUMNS[2:]
        )
        cursor = self._connection.cursor()
        cursor.execute("SET LOCAL synchronous_commit = off")
        cursor.execute(sql.SQL("CREATE TEMP TABLE incoming (LIKE {}) ON COMMIT DROP").format(self._table))
        with cursor.copy(sql.SQL("COPY incoming ({}) FROM STDIN (FORMAT BINARY)").format(columns)) as copy:
            copy.write(_COPY_HEADER)
            for chunk in _encode(rows):
                copy.write(chunk)
            copy.write(_COPY_END)
        if self._first:
            self._first = False
            self._drop_index_for_much()
        # One order for all writers: two intervals with common images cannot deadlock.
        cursor.execute(
            sql.SQL(
                "INSERT INTO {table} AS old ({columns}) SELECT {columns} FROM incoming "
                "ORDER BY entity_key, feature_name ON CONFLICT (entity_key, feature_name) DO UPDATE SET {changes} "
                "WHERE old.event_ts < EXCLUDED.event_ts OR (old.event_ts = EXCLUDED.event_ts "
                "AND (old.value <> EXCLUDED.value OR old.created_ts <> EXCLUDED.created_ts))"
            ).format(table=self._table, columns=columns, changes=changes)
        )
        self._connection.commit()


def _field(data: bytes) -> bytes:
    return struct.pack(">i", len(data)) + data


def _encode(rows: pa.Table) -> Iterator[bytes]:
    """Binary COPY tuples, all features of one column after another."""
    import pyarrow as pa

    keys = [_field(entity_key(image_id)) for image_id in rows.column("image_id").to_pylist()]
    times = _times(rows)
    for name in rows.column_names:
        if name in ROW_KEYS:
            continue
        head = struct.pack(">h", len(_COLUMNS))
        feature = _field(name.encode())
        column = rows.column(name)
        values = _vectors(column) if pa.types.is_list(column.type) else _numbers(column)
        yield b"".join(
            head + key + feature + value + time for key, value, time in zip(keys, values, times, strict=True)
        )


def _times(rows: pa.Table) -> list[bytes]:
    """event_ts and created_ts of each row."""
    import pyarrow as pa

    stamps = np.empty((rows.num_rows, 2), np.dtype([("length", ">i4"), ("microseconds", ">i8")]))
    stamps["length"] = 8
    for place, name in enumerate(("event_timestamp", "created_timestamp")):
        microseconds = rows.column(name).cast(pa.timestamp("us", "UTC")).cast(pa.int64()).to_numpy()
        stamps["microseconds"][:, place] = microseconds - _POSTGRES_EPOCH_US
    return [pair.tobytes() for pair in stamps]


def _numbers(column: pa.ChunkedArray) -> Iterator[bytes]:
    """value, value_text and vector_value of numbers: ValueProto (float_val or int64_val), its text, null."""
    import pyarrow as pa

    if pa.types.is_float32(column.type):
        for number in column.to_pylist():
            yield _field(b"\x35" + struct.pack("<f", number)) + _field(repr(number).encode()) + _NULL
    else:
        for number in column.to_pylist():
            yield _field(b"\x20" + _varint(number)) + _field(str(number).encode()) + _NULL


def _vectors(column: pa.ChunkedArray) -> Iterator[bytes]:
    """value, value_text and vector_value of float32 lists: ValueProto (float_list_val), null, pgvector's binary."""
    matrix = np.stack(column.to_numpy()).astype("<f4")
    num_bytes = 4 * matrix.shape[1]
    inner = b"\x0a" + _varint(num_bytes)
    head = b"\x82\x01" + _varint(len(inner) + num_bytes) + inner
    shape = struct.pack(">hh", matrix.shape[1], 0)
    for little, big in zip(matrix, matrix.astype(">f4"), strict=True):
        yield _field(head + little.tobytes()) + _NULL + _field(shape + big.tobytes())


def _varint(number: int) -> bytes:
    """Protocol Buffers' variable-length integer; negative ones take ten bytes."""
    number &= (1 << 64) - 1
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)
