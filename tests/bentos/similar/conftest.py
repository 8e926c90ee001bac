"""A dataset with stored features, and one process that searches it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from similar_service import Searching, searching
from stored_images import Stored, store_images

from pipelines.settings import Settings


@pytest.fixture(scope="module")
def stored(postgres_settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Stored:
    return store_images(postgres_settings, tmp_path_factory.mktemp("stored"))


@pytest.fixture(scope="module")
def search(stored: Stored) -> Iterator[Searching]:
    variables = {"DARKROOM_VECTORS_URL_FILE": str(stored.url_file)}
    with searching(stored.work, stored.house.storage.uri, stored.recipes, stored.house.name, **variables) as found:
        yield found
