"""Where images come from: class folders, archives of them, and tables of URIs; on disk or in S3."""

from __future__ import annotations

from pathlib import Path
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pipelines.core.errors import SourceError
from pipelines.core.recipe import Source
from pipelines.core.sources.archive import ARCHIVES, ArchiveTree, fetch, plain_archive
from pipelines.core.sources.class_folders import ClassFolders
from pipelines.core.sources.files import ImageSource, SourceFile
from pipelines.core.sources.table import TABLES, ImageTable
from pipelines.core.storage import open_storage

__all__ = ["ImageSource", "SourceFile", "list_intervals", "open_source"]


def open_source(section: Source, *, home: Path, endpoint_url: str | None = None) -> ImageSource:
    """The source that a recipe names; a relative path starts at `home`, whose cache/ holds what had to be fetched.

    Raises SourceError naming what is missing or not understood.
    """
    if not section.uri:
        raise SourceError("source.uri is empty: name a folder, an archive, a table or an s3:// prefix of one")
    try:
        timezone = ZoneInfo(section.timezone)
    except (ZoneInfoNotFoundError, ValueError) as error:
        raise SourceError(f"source.timezone = {section.timezone!r}: no such time zone") from error
    uri = _absolute(section.uri, home)
    found = _single(uri, endpoint_url)
    if found.lower().endswith(TABLES):
        return ImageTable(found, fetch(found, home / "cache", endpoint_url), timezone)
    if found.lower().endswith(ARCHIVES):
        return ClassFolders(ArchiveTree(found, plain_archive(found, home / "cache", endpoint_url)), archive=found)
    return ClassFolders(open_storage(found, endpoint_url=endpoint_url))


def list_intervals(section: Source, *, home: Path, endpoint_url: str | None = None) -> list[str]:
    """Ids of the intervals that the source holds now: days (YYYY-MM-DD) in order, then `static` for the undated."""
    days = open_source(section, home=home, endpoint_url=endpoint_url).intervals()
    return sorted(days, key=lambda day: (not day[:1].isdigit(), day))


def _absolute(uri: str, home: Path) -> str:
    uri = uri.removeprefix("file://")
    return uri.rstrip("/") if "://" in uri else str((home / Path(uri).expanduser()).absolute())


def _single(uri: str, endpoint_url: str | None) -> str:
    """The table or archive that a folder stands for: its manifest.csv or manifest.parquet, or its only content."""
    if uri.lower().endswith(TABLES + ARCHIVES) and not Path(uri).is_dir():
        return uri
    if "://" not in uri and not Path(uri).exists():
        raise SourceError(f"{uri}: no such file or folder")
    if "://" not in uri and not Path(uri).is_dir():
        raise SourceError(f"{uri}: expected a folder or one of {', '.join(ARCHIVES + TABLES)}")
    folders, entries = open_storage(uri, endpoint_url=endpoint_url).folders()
    names = [entry.key for entry in entries]
    if not folders and not names:
        raise SourceError(f"{uri}: empty, or no such prefix; expected a folder per class")
    tables = [name for name in names if name.lower() in ("manifest.csv", "manifest.parquet")]
    packed = [name for name in names if name.lower().endswith(TABLES + ARCHIVES)]
    if len(tables) > 1 or (not folders and len(packed) > 1):
        raise SourceError(f"{uri}: holds {', '.join(tables or packed)}; name the one to read")
    chosen = tables or ([] if folders else packed)
    return f"{uri}/{chosen[0]}" if chosen else uri
