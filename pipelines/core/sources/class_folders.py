"""A folder per class, with or without train/val/test above it, with or without dt=YYYY-MM-DD folders anywhere above the
files; in a folder, an archive or below an S3 prefix.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from typing import Protocol

from pipelines.core.datasets import STATIC, UNDATED
from pipelines.core.errors import SourceError
from pipelines.core.sources.archive import ArchiveTree, Member
from pipelines.core.sources.files import SourceFile
from pipelines.core.storage import Entry, LocalStorage

SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}
_SYSTEM = frozenset(("__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "@eadir", "$recycle.bin", "lost+found"))


class Tree(Protocol):
    """What class folders need of a storage or an archive."""

    uri: str

    def folders(self, prefix: str = "") -> tuple[list[str], list[Entry]]: ...

    def list(self, prefix: str = "") -> Iterator[Entry]: ...

    def locate(self, key: str) -> str: ...


@dataclass(frozen=True, kw_only=True)
class _Place:
    """A folder on the way to the files, and what its path says."""

    prefix: str
    day: str | None = None
    split: str | None = None
    label: str | None = None


class ClassFolders:
    """Images whose folder names their class."""

    def __init__(self, tree: Tree, archive: str | None = None) -> None:
        self.tree = tree
        self.uri = tree.uri
        self._archive = archive
        self._root = _Place(prefix=self._unwrap())

    def intervals(self) -> set[str]:
        return set(self._days(self._root))

    def files(self, interval: str, notes: list[str]) -> Iterator[SourceFile]:
        """Files in the order of their keys. Raises SourceError where there is no class folder at all."""
        hidden: list[str] = []
        if isinstance(self.tree, ArchiveTree):
            notes += self.tree.notes
        classes = 0
        for place in self._places(self._root, interval, notes, hidden):
            if isinstance(place, SourceFile):
                yield place
                continue
            classes += 1
            yield from self._class(place, interval, notes, hidden)
        if not classes and not self.intervals():
            raise SourceError(f"{self.uri}: no class folders; expected <class>/<image> or <split>/<class>/<image>")
        if hidden:
            notes.append(f"{len(hidden)} hidden or system files left out, such as {hidden[0]}")
        broken = sorted(self.tree.broken_links) if isinstance(self.tree, LocalStorage) else []
        if broken:
            notes.append(f"{len(broken)} links lead nowhere and are left out, such as {broken[0]}")

    def everything(self) -> Iterator[SourceFile]:
        """Every visible file, whatever folder it is in, without a class."""
        for entry in self.tree.list(""):
            if not any(_is_hidden(name) for name in entry.key.split("/")):
                yield self._file(entry, _Place(prefix=""))

    def _class(self, place: _Place, interval: str, notes: list[str], hidden: list[str]) -> Iterator[SourceFile]:
        """Files of one class folder, below further folders too."""
        seen = elsewhere = 0
        for entry in self.tree.list(place.prefix):
            folders = entry.key[len(place.prefix) :].split("/")
            here = place
            for name in folders[:-1]:
                here = replace(here, day=_day(name, self.tree.locate(entry.key)) or here.day)
            if (here.day or STATIC) != interval:
                elsewhere += 1
            elif any(_is_hidden(name) for name in folders):
                hidden.append(self.tree.locate(entry.key))
            else:
                seen += 1
                yield self._file(entry, here)
        if not seen and not elsewhere:
            notes.append(f"class folder {self.tree.locate(place.prefix).rstrip('/')}: no files in it")

    def _places(
        self, place: _Place, interval: str, notes: list[str], hidden: list[str]
    ) -> Iterator[_Place | SourceFile]:
        """Class folders that may hold files of the interval; files beside them come as quarantined."""
        names, entries = self.tree.folders(place.prefix)
        for entry in entries:
            if _is_hidden(entry.key.rpartition("/")[2]):
                hidden.append(self.tree.locate(entry.key))
            elif (place.day or STATIC) == interval:
                file = self._file(entry, place)
                yield replace(file, label=None, reason="no_label", detail="it is in no class folder")
            else:
                notes.append(f"{self.tree.locate(entry.key)}: in no class folder and without a day; left out")
        for child in self._children(place, names, hidden):
            if child.day is not None and child.day != interval:
                continue
            if child.label is None:
                yield from self._places(child, interval, notes, hidden)
            else:
                yield child

    def _children(self, place: _Place, names: list[str], hidden: list[str]) -> Iterator[_Place]:
        visible = [name for name in names if not _is_hidden(name)]
        hidden += [self.tree.locate(f"{place.prefix}{name}/") for name in names if _is_hidden(name)]
        undated = [name for name in visible if not name.startswith("dt=")]
        splits = place.split is None and place.label is None and self._are_splits(place.prefix, undated)
        for name in visible:
            child = replace(place, prefix=f"{place.prefix}{name}/")
            day = _day(name, self.tree.locate(child.prefix))
            if day is not None:
                yield replace(child, day=day)
            elif splits and name.lower() in SPLIT_NAMES:
                yield replace(child, split=SPLIT_NAMES[name.lower()])
            else:
                yield replace(child, label=name)

    def _are_splits(self, prefix: str, names: list[str]) -> bool:
        """Whether folders called train, val or test are splits, and not classes of vehicles or papers."""
        candidates = [name for name in names if name.lower() in SPLIT_NAMES]
        meanings = {SPLIT_NAMES[name.lower()] for name in candidates}
        if not candidates or (len(candidates) < len(names) and len(meanings) < 2):
            return False
        return any(self._has_folders(f"{prefix}{name}/") for name in candidates)

    def _has_folders(self, prefix: str) -> bool:
        return any(not _is_hidden(name) for name in self.tree.folders(prefix)[0])

    def _days(self, place: _Place) -> Iterator[str]:
        """Intervals below a folder; all its folders are looked at, its files only where they are undated."""
        names, entries = self.tree.folders(place.prefix)
        if place.label is not None and any(not _is_hidden(entry.key.rpartition("/")[2]) for entry in entries):
            yield place.day or STATIC
        children = self._children(place, names, [])
        for child in children:
            # Below a dated class folder there is nothing more to learn.
            if child.day is not None and place.day is None and self._any_file(child.prefix):
                yield child.day
            else:
                yield from self._days(replace(child, label=place.label or child.label))

    def _any_file(self, prefix: str) -> bool:
        paths = (entry.key[len(prefix) :].split("/") for entry in self.tree.list(prefix))
        return any(not any(_is_hidden(name) for name in path) for path in paths)

    def _unwrap(self) -> str:
        """The prefix below folders that wrap everything, as archives of a folder have them."""
        prefix = ""
        while True:
            names = [name for name in self.tree.folders(prefix)[0] if not _is_hidden(name)]
            if len(names) != 1 or names[0].startswith("dt=") or names[0].lower() in SPLIT_NAMES:
                return prefix
            inner = [name for name in self.tree.folders(f"{prefix}{names[0]}/")[0] if not _is_hidden(name)]
            dated = all(name.startswith("dt=") for name in inner)
            if not inner or (dated and not self._dated_classes(prefix, names[0])):
                return prefix
            prefix = f"{prefix}{names[0]}/"

    def _dated_classes(self, prefix: str, name: str) -> bool:
        """Whether the dt= folders in a lone folder hold folders, so that it is no class."""
        day = next(inner for inner in self.tree.folders(f"{prefix}{name}/")[0] if inner.startswith("dt="))
        return self._has_folders(f"{prefix}{name}/{day}/")

    def _file(self, entry: Entry, place: _Place) -> SourceFile:
        uri = self.tree.locate(entry.key)
        known = SourceFile(
            uri=uri,
            label=place.label,
            split=place.split,
            event_timestamp=datetime.fromisoformat(place.day).replace(tzinfo=UTC) if place.day else UNDATED,
            version=entry.version,
            archive=self._archive,
            offset=entry.offset if isinstance(entry, Member) else None,
            size_bytes=entry.size_bytes,
        )
        try:
            uri.encode()
        except UnicodeEncodeError:
            shown = uri.encode(errors="replace").decode()
            label = place.label and place.label.encode(errors="replace").decode()
            return replace(known, uri=shown, label=label, reason="bad_name", detail="its name is not UTF-8; rename it")
        return known


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in _SYSTEM or name == "Icon\r"


def _day(name: str, where: str) -> str | None:
    """The day of a dt= folder, None for another one. Raises SourceError for a dt= folder without a date."""
    if not name.startswith("dt="):
        return None
    text = name.removeprefix("dt=")
    try:
        if len(text) == 10:
            return date.fromisoformat(text).isoformat()
    except ValueError:
        pass
    raise SourceError(f"{where}: {name} is no date; expected dt=YYYY-MM-DD")
