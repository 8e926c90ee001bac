"""Which models there are, and by which embedding their images are stored: the recipes, read again when they change."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from bentos.kit.errors import RequestRefused
from pipelines.core import recipe as recipes
from pipelines.core.errors import NotFound, RecipeError
from pipelines.core.recipe import Recipe

_LOOK_S = 1.0
"""Between looks at the files."""

logger = logging.getLogger("darkroom.similar")


class Catalog:
    """May be asked from several threads."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self._folders = tuple(folders)
        self._lock = threading.Lock()
        self._looked_at = float("-inf")
        self._seen: object = None
        self._recipes: dict[str, Recipe] = {}
        self._broken: dict[Path, RecipeError] = {}

    def recipe(self, name: str) -> Recipe:
        """Of a model. Raises NotFound where there is none, RequestRefused (500) where its file does not load."""
        with self._lock:
            if time.monotonic() - self._looked_at >= _LOOK_S:
                self._look()
            found = self._recipes.get(name)
            broken = any(path.stem == name for path in self._broken)
        if broken:
            raise RequestRefused(500, "bad_recipe", f"the recipe of {name!r} does not load; `darkroom run` says why")
        if found is None:
            raise NotFound(f"model {name!r}: no recipe of this name has stored images; what was imported has none")
        return found

    def _look(self) -> None:
        files = sorted(path for folder in self._folders for path in folder.glob("*.toml"))
        seen = [(path, status.st_mtime_ns, status.st_size) for path in files if (status := _status(path))]
        if seen != self._seen:
            self._recipes, self._broken = recipes.registered(*self._folders)
            for path, error in self._broken.items():
                logger.warning("a recipe does not load", extra={"path": str(path), "reason": str(error)})
            self._seen = seen
        self._looked_at = time.monotonic()


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except OSError:  # replaced at this moment
        return None
