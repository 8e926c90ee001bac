"""What people may write for a model: a name, name@alias, name:version, a package digest, or a package folder."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.core.errors import NotFound, UserError

if TYPE_CHECKING:
    from pipelines.core.model_package import ModelPackage
    from pipelines.core.ports import ModelRegistry, ModelVersion
    from pipelines.settings import Settings

FORMS = (
    "NAME (its champion), NAME@champion, NAME@challenger, NAME:VERSION, VERSION (of the default model), "
    "a package digest or a package folder"
)
_DIGEST = re.compile(r"[0-9a-f]+")
_MIN_DIGEST = 8
"""Characters of a digest that are taken for one."""


@dataclass(frozen=True, kw_only=True)
class NamedPackage:
    """A package on this machine, and the registered version that it is, if one was asked for."""

    package: ModelPackage
    version: ModelVersion | None = None


def find_package(settings: Settings, text: str) -> NamedPackage:
    """Raises NotFound, or UserError for what is none of FORMS. Needs no database for folders and whole digests."""
    from pipelines.cli.execute import storage_of
    from pipelines.core import model_package, package_store
    from pipelines.core.model_package import MANIFEST

    folder = Path(text).expanduser()
    if (folder / MANIFEST).is_file():
        return NamedPackage(package=model_package.load(folder))
    if "/" in text or text.startswith("."):
        raise NotFound(f"{text}: no model package there (a folder with {MANIFEST})")
    storage, cache = storage_of(settings), settings.home / "cache"
    if len(text) == 64 and _DIGEST.fullmatch(text):
        return NamedPackage(package=package_store.get(storage, text, cache))
    version = find_version(settings, text)
    return NamedPackage(package=package_store.get(storage, version.package_digest, cache), version=version)


def find_version(settings: Settings, text: str) -> ModelVersion:
    """The registered version that a text other than a folder names. Raises NotFound or UserError."""
    from pipelines.adapters.tracking import MlflowRegistry

    registry = MlflowRegistry(settings)
    if text.isdigit() and len(text) < _MIN_DIGEST:
        return registry.version(settings.default_model, int(text))
    name, separator, which = _split(text)
    if separator == ":":
        number = which.removeprefix("v")
        if not number.isdigit():
            raise UserError(f"{text}: {which!r} is no version number; expected {FORMS}")
        return registry.version(name, int(number))
    found = registry.alias(name, which or "champion")
    if found is not None:
        return found
    if not separator and len(text) >= _MIN_DIGEST and _DIGEST.fullmatch(text):
        return _of_digest(registry, text)
    newest = registry.versions(name)
    hint = f"{name}:{newest[0].version} is its newest version" if newest else "it has no version yet"
    raise NotFound(f"{text}: {name} has no {which or 'champion'}; {hint}")


def _split(text: str) -> tuple[str, str, str]:
    for separator in "@:":
        name, found, which = text.partition(separator)
        if found:
            return name, found, which
    return text, "", ""


def _of_digest(registry: ModelRegistry, digest: str) -> ModelVersion:
    found = [one for one in registry.versions() if one.package_digest.startswith(digest)]
    if len(found) != 1:
        several = ", ".join(f"{one.model}:{one.version}" for one in found)
        raise NotFound(f"{digest}: {f'the digest of {several}' if found else 'no registered version has this digest'}")
    return found[0]
