"""Build the bento of a registered version: its model, the serving code as it is now, and pinned requirements."""

from __future__ import annotations

from pathlib import Path

from pipelines.core import model_package
from pipelines.core.ports import BentoBuilder
from pipelines.core.values import Built, Registered


def build_bento(package: Path, registered: Registered, builder: BentoBuilder, out: Path) -> Built:
    """Leave `bento/` in `out`. Raises IntegrityError where the folder is not the registered version's package."""
    found = model_package.load(package, digest=registered.package_digest)
    builder(found, version=registered.version, out=out / "bento")
    return Built(model=registered.model, version=registered.version, package_digest=found.digest)
