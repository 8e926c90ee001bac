"""Final model packages in the object store, by digest: `packages/<digest>/`, immutable, package.json last.

Beside them `lineage/<digest>/` says what a package was made from: recipe.json and training_set.parquet.
"""

from __future__ import annotations

from pathlib import Path

from pipelines.core import model_package
from pipelines.core.errors import NotFound
from pipelines.core.model_package import MANIFEST, ModelPackage
from pipelines.core.storage import Storage


def package_prefix(digest: str) -> str:
    return f"packages/{digest}"


def lineage_key(digest: str, name: str) -> str:
    """Where recipe.json or training_set.parquet of a package is stored."""
    return f"lineage/{digest}/{name}"


def is_there(storage: Storage, digest: str) -> bool:
    """Whether a package is stored, whole."""
    return storage.exists(f"{package_prefix(digest)}/{MANIFEST}")


def put(storage: Storage, package: ModelPackage) -> None:
    """Store a package; nothing happens where it is there whole."""
    prefix = package_prefix(package.digest)
    if is_there(storage, package.digest):
        storage.refresh(f"{prefix}/{MANIFEST}")  # gc spares what is in use
        return
    for name in package.files:
        storage.write(f"{prefix}/{name}", package.read(name))
    storage.write(f"{prefix}/{MANIFEST}", (package.folder / MANIFEST).read_bytes())


def get(storage: Storage, digest: str, cache: Path, *, verify: bool = True) -> ModelPackage:
    """A stored package on this machine. Raises NotFound, or IntegrityError where it is not what its digest says."""
    prefix = package_prefix(digest)
    if not is_there(storage, digest):
        raise NotFound(f"{storage.locate(prefix)}: no such model package")
    return model_package.load(storage.local(prefix, cache), verify=verify, digest=digest)
