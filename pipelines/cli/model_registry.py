"""MLflow's registry, with a row in the audit log for every version and every move of the champion."""

from __future__ import annotations

from pipelines.adapters import database
from pipelines.adapters.tracking import MlflowRegistry
from pipelines.core.ports import ModelVersion, Registration
from pipelines.settings import Settings


class AuditedRegistry(MlflowRegistry):
    """Fulfils `core.ports.ModelRegistry` for whoever changes something.

    The row comes after the change: where a process is killed in between, the next try leaves it. Nothing is written
    where nothing changed.
    """

    def __init__(self, settings: Settings, actor: str) -> None:
        super().__init__(settings)
        self._url = settings.database_url("darkroom")
        self._actor = actor

    def register(self, registration: Registration) -> ModelVersion:
        """The version of this package, made if its content is not there yet; `challenger` unless it is the champion."""
        version = super().register(registration)
        detail = {**_identity(version), "run": version.tags.get("run", ""), "verdict": version.tags.get("verdict", "")}
        database.record_once(self._url, version.model, "registered", detail, self._actor, key="version")
        return version

    def promote(self, model: str, version: int) -> ModelVersion:
        """Move `champion` to a version that serves now. Raises NotFound."""
        promoted = super().promote(model, version)
        database.record_change(self._url, model, "champion", _identity(promoted), self._actor, key="version")
        return promoted


def _identity(version: ModelVersion) -> dict[str, object]:
    return {"version": version.version, "package_digest": version.package_digest}
