"""A CSV or Parquet table of images: uri, label, and optionally split, event_time, tombstone and image_id."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

from pipelines.core.datasets import STATIC, UNDATED
from pipelines.core.errors import SourceError
from pipelines.core.sources.class_folders import SPLIT_NAMES
from pipelines.core.sources.files import SourceFile

TABLES = (".csv", ".parquet")

_NAMES = {
    "uri": ("uri", "source_uri", "path"),
    "label": ("label", "class"),
    "split": ("split",),
    "event_time": ("event_time", "event_timestamp"),
    "tombstone": ("tombstone", "deleted"),
    "image_id": ("image_id", "sha256"),
}
_TRUE, _FALSE = ("1", "true", "yes", "t", "y"), ("", "0", "false", "no", "f", "n")
_SHA256 = re.compile(r"[0-9a-f]{64}")

Cell = str | datetime | date | bool | int | float | bytes | None


class ImageTable:
    """Images that a table names. Relative URIs start at the table's folder."""

    def __init__(self, uri: str, path: Path, timezone: ZoneInfo) -> None:
        """`path` is the table itself or its local copy."""
        self.uri = uri
        self._path = path
        self._timezone = timezone
        self._base = uri.rpartition("/")[0]

    def intervals(self) -> set[str]:
        return {_interval(self._time(row, cells.get("event_time"))) for row, cells in self._rows([])}

    def files(self, interval: str, notes: list[str]) -> Iterator[SourceFile]:
        """Rows of one interval in the table's order. Raises SourceError naming the row that makes no sense."""
        for row, cells in self._rows(notes):
            time = self._time(row, cells.get("event_time"))
            if _interval(time) == interval:
                yield self._file(row, cells, time or UNDATED)

    def _file(self, row: int, cells: Mapping[str, Cell], time: datetime) -> SourceFile:
        uri = self._resolve(self._text(row, "uri", cells.get("uri")))
        if "://" in uri and not uri.startswith("s3://"):
            raise self._error(row, "uri", uri, "a path or an s3:// URI")
        label = self._text(row, "label", cells.get("label")) or None
        image_id = self._text(row, "image_id", cells.get("image_id")).lower() or None
        if image_id is not None and not _SHA256.fullmatch(image_id):
            raise self._error(row, "image_id", image_id, "the SHA-256 of the file in hex")
        tombstone = self._flag(row, cells.get("tombstone"))
        version, size_bytes = _stat(uri)
        file = SourceFile(
            uri=uri,
            label=None if tombstone else label,
            split=self._split(row, cells.get("split")),
            event_timestamp=time,
            version=version,
            tombstone=tombstone,
            image_id=image_id,
            size_bytes=size_bytes,
        )
        if label is None and not tombstone:
            return replace(file, reason="no_label", detail=f"row {row} of {self.uri} has no label")
        return file

    def _rows(self, notes: list[str]) -> Iterator[tuple[int, dict[str, Cell]]]:
        """Row number (the header is row 1) and cells by our names."""
        rows = _csv_rows(self._path) if self.uri.lower().endswith(".csv") else _parquet_rows(self._path)
        try:
            header = next(rows, [])
            columns = self._columns([str(name) for name in header], notes)
            for number, cells in enumerate(rows, start=2):
                if len(cells) == len(header):
                    yield number, {name: cells[at] for name, at in columns.items()}
                elif cells:
                    raise SourceError(f"{self.uri}: row {number} has {len(cells)} cells, its header {len(header)}")
        except (UnicodeDecodeError, csv.Error, OSError) as error:
            raise SourceError(f"{self.uri}: cannot be read: {error}") from error

    def _columns(self, header: list[str], notes: list[str]) -> dict[str, int]:
        names = [name.strip().lower() for name in header]
        found = {}
        for ours, accepted in _NAMES.items():
            present = [name for name in accepted if name in names]
            if len(present) > 1:
                raise SourceError(f"{self.uri}: columns {' and '.join(present)} mean the same; keep one")
            if present:
                found[ours] = names.index(present[0])
        for needed in ("uri", "label"):
            if needed not in found:
                raise SourceError(f"{self.uri}: no column {needed!r}; it has {', '.join(header) or 'none'}")
        unused = [name for at, name in enumerate(header) if at not in found.values()]
        if unused:
            notes.append(f"{self.uri}: columns not used: {', '.join(unused)}")
        return found

    def _resolve(self, uri: str) -> str:
        uri = uri.removeprefix("file://")
        if "://" in uri or uri.startswith("/"):
            return uri
        return f"{self._base}/{uri}" if "://" in self._base else os.path.normpath(f"{self._base}/{uri}")

    def _time(self, row: int, cell: Cell) -> datetime | None:
        if cell is None or cell == "":
            return None
        try:
            if isinstance(cell, str):
                cell = datetime.fromisoformat(cell.strip())
            elif isinstance(cell, date) and not isinstance(cell, datetime):
                cell = datetime(cell.year, cell.month, cell.day)
        except ValueError:
            pass
        if not isinstance(cell, datetime):
            raise self._error(row, "event_time", cell, "ISO 8601, such as 2024-05-31 or 2024-05-31T12:00:00Z")
        return (cell if cell.tzinfo else cell.replace(tzinfo=self._timezone)).astimezone(UTC)

    def _split(self, row: int, cell: Cell) -> str | None:
        text = self._text(row, "split", cell).lower()
        if text and text not in SPLIT_NAMES:
            raise self._error(row, "split", cell, "train, val or test")
        return SPLIT_NAMES[text] if text else None

    def _flag(self, row: int, cell: Cell) -> bool:
        text = str(cell if cell is not None else "").strip().lower()
        if text not in _TRUE + _FALSE:
            raise self._error(row, "tombstone", cell, "true or false")
        return text in _TRUE

    def _text(self, row: int, column: str, cell: Cell) -> str:
        if isinstance(cell, bytes) or (column == "uri" and not cell):
            raise self._error(row, column, cell, "a text")
        return "" if cell is None else str(cell).strip()

    def _error(self, row: int, column: str, cell: Cell, expected: str) -> SourceError:
        return SourceError(f"{self.uri}: row {row}, {column} = {cell!r}: expected {expected}")


def _interval(time: datetime | None) -> str:
    return time.date().isoformat() if time else STATIC


def _stat(uri: str) -> tuple[str, int | None]:
    """Version and size of a local file. One in S3 is not asked for: a request a row would take hours."""
    if "://" in uri:
        return "", None
    try:
        status = Path(uri).stat()
    except (OSError, ValueError):
        return "missing", None
    return f"{status.st_size}-{status.st_mtime_ns}", status.st_size


def _csv_rows(path: Path) -> Iterator[list[Cell]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        for row in csv.reader(file):
            yield list(row)


def _parquet_rows(path: Path) -> Iterator[list[Cell]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
        yield list(file.schema_arrow.names)
        for batch in file.iter_batches(16_384):
            columns = [column.to_pylist() for column in batch.columns]
            for cells in zip(*columns, strict=True):
                yield list(cells)
    except pa.ArrowException as error:
        raise OSError(str(error)) from error
