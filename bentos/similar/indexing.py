"""Brings the index of a dataset's labels up to its head: `python -m bentos.similar.indexing STORE ENDPOINT NAME CACHE`.

A process of its own: the libraries that read Parquet and what they hold would stay in the service's memory for good.
"""

from __future__ import annotations

import os
import sqlite3
import sys
from collections.abc import Sequence
from pathlib import Path

from pipelines.core import labels
from pipelines.core.errors import DarkroomError
from pipelines.core.storage import open_storage


def main(arguments: Sequence[str]) -> int:
    """Exit status: 0 where the index is up to date; else the reason is on stderr."""
    store_uri, endpoint_url, name, folder = arguments
    os.nice(5)
    storage, cache = open_storage(store_uri, endpoint_url=endpoint_url or None), Path(folder)
    try:
        labels.update(storage, name, labels.index_path(cache, storage, name), cache)
    except (DarkroomError, OSError, sqlite3.Error) as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
