"""What serving processes may see: the databases as their roles do, in files, the platform's own key, and where
rates and answers are shared.
"""

from __future__ import annotations

import os
from pathlib import Path

from pipelines.adapters import database, online_store
from pipelines.core.actors import supervisor
from pipelines.local.secrets import FIRST_KEY
from pipelines.settings import PLATFORM_KEY, SEARCH_ROLE, SERVING_ROLE, Settings

_URL_FILE = "serving-database-url"
_SEARCH_URL_FILE = "search-database-url"
_JWT = "DARKROOM_JWT_"
FIRST = database.Grant(name="first", role="admin")


def prepare(settings: Settings) -> None:
    """After the database's migrations: rights, the file with the URL, and this installation's first key."""
    url = settings.database_url("darkroom")
    if settings.serving_database_url != url:
        database.allow_serving(url, SERVING_ROLE)
    _write(settings.secrets / _URL_FILE, settings.serving_database_url)
    database.ensure_key(url, settings.secret(FIRST_KEY), FIRST, actor=supervisor())


def prepare_search(settings: Settings) -> None:
    """The file with the URL by which stored embeddings are searched, and the right to read those there are.

    Raises PlatformError where the feature store does not answer; the file is there all the same.
    """
    _write(search_url_file(settings), settings.search_database_url)
    url = settings.database_url("feast")
    if settings.search_database_url != url:
        online_store.allow_search(url, SEARCH_ROLE)


def search_url_file(settings: Settings) -> Path:
    return settings.secrets / _SEARCH_URL_FILE


def _write(path: Path, text: str) -> None:
    """A secret, for us alone, whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.touch(mode=0o600)
    temporary.write_text(text + "\n")
    temporary.replace(path)


def environment(settings: Settings, num_processes: int) -> dict[str, str]:
    """For one of a deployment's processes: where its secrets are, never what they are."""
    return {
        **{name: value for name, value in os.environ.items() if name.startswith(_JWT)},
        "DARKROOM_AUTH": settings.auth,
        "DARKROOM_KEYS_URL_FILE": str(settings.secrets / _URL_FILE),
        "DARKROOM_PLATFORM_KEY_FILE": str(settings.secrets / PLATFORM_KEY),
        "DARKROOM_PROCESSES": str(num_processes),
        **(_shared(settings, settings.redis_url_file) if settings.redis_url_file else {}),
    }


def _shared(settings: Settings, redis_url_file: Path) -> dict[str, str]:
    return {
        "DARKROOM_REDIS_URL_FILE": str(redis_url_file),
        "DARKROOM_REDIS_ANSWERS_S": str(settings.redis_answers_s),
        "DARKROOM_REDIS_MAX_ANSWER_BYTES": str(settings.redis_max_answer_bytes),
    }
