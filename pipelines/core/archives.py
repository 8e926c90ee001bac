"""Unpacking tar archives. `tarfile`'s own filters are missing before Python 3.11.4, which Debian 12 does not have."""

from __future__ import annotations

import shutil
import tarfile
from pathlib import Path, PurePosixPath

from pipelines.core.errors import IntegrityError


def unpack(archive: Path, folder: Path) -> None:
    """Write an archive's files and folders below `folder`; of modes and owners nothing is taken over.

    Raises IntegrityError, with nothing written outside, for a member that is neither or that lies elsewhere.
    """
    with tarfile.open(archive) as tar:
        for member in tar:
            place = PurePosixPath(member.name)
            if place.is_absolute() or ".." in place.parts or not (member.isfile() or member.isdir()):
                raise IntegrityError(f"{archive}: member {member.name!r} is no file or folder inside the archive")
            target = folder / place
            if member.isdir():
                target.mkdir(parents=True, exist_ok=True)
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            content = tar.extractfile(member)
            assert content is not None, "it is a file"
            with content, target.open("wb") as file:
                shutil.copyfileobj(content, file)
