"""All images of a source at once, of whatever day, with or without classes: what a foreign model is measured on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from pipelines.core.datasets import STATIC
from pipelines.core.sources.class_folders import ClassFolders
from pipelines.core.sources.files import ImageSource, SourceFile


class Undivided:
    """Fulfils `ImageSource`, with one interval. Images in no class folder have no label, and are no mistake."""

    def __init__(self, source: ImageSource) -> None:
        self._source = source
        self.uri = source.uri

    def intervals(self) -> set[str]:
        return {STATIC}

    def files(self, interval: str, notes: list[str]) -> Iterator[SourceFile]:  # noqa: ARG002
        days = sorted(self._source.intervals())
        if not days and isinstance(self._source, ClassFolders):
            notes.append("no class folders: the images are unlabelled")
            yield from self._source.everything()
        for day in days:
            for file in self._source.files(day, notes):
                if file.tombstone:
                    continue
                yield replace(file, reason=None, detail=None) if file.reason == "no_label" else file
