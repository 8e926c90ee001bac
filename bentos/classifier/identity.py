"""Which registered version a bento holds."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from pipelines.core.errors import IntegrityError

FILE = "identity.json"
"""Beside the model package: {"model", "version", "package_digest"}, written when the bento was built."""


@dataclass(frozen=True, kw_only=True)
class Identity:
    model_name: str
    model_version: str
    package_digest: str


def read(model_folder: Path) -> Identity:
    """Raises IntegrityError where the bento was not built with one."""
    path = model_folder.parent / FILE
    try:
        table = json.loads(path.read_text("utf-8"))
        return Identity(
            model_name=table["model"], model_version=str(table["version"]), package_digest=table["package_digest"]
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise IntegrityError(f"{path}: not readable ({error!r}); build the bento again") from error
