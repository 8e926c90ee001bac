"""Deployments as commands and steps ask for them: rows in the database, seen through the gateway."""

from __future__ import annotations

from pipelines.adapters import database
from pipelines.adapters.gateway import wait_until_answers
from pipelines.core.deployments import Build, Deployment, ServingSpec, Withdrawn
from pipelines.core.errors import NotFound
from pipelines.core.ports import ModelRegistry
from pipelines.settings import Settings


class DeploymentRequests:
    """Fulfils `core.ports.Deployments`."""

    def __init__(self, settings: Settings, actor: str) -> None:
        self._settings = settings
        self._actor = actor
        self._url = settings.database_url("darkroom")

    def request(
        self, build: Build, spec: ServingSpec, *, kind: str = "deploy", origin: int | None = None
    ) -> Deployment:
        return database.request_deployment(self._url, build, spec, actor=self._actor, kind=kind, origin=origin)

    def wait(self, deployment_id: int, timeout_s: float) -> Deployment:
        return database.wait_for(self._url, deployment_id, timeout_s)

    def confirm(self, build: Build, timeout_s: float) -> None:
        wait_until_answers(self._settings, build, timeout_s)

    def current(self, model: str) -> Deployment | None:
        return database.current(self._url, model)

    def previous(self, model: str) -> Deployment | None:
        return database.previous(self._url, model)


class RolledBack:
    """Fulfils `core.ports.Withdrawals`: the history tells versions, the registry their content."""

    def __init__(self, settings: Settings, registry: ModelRegistry) -> None:
        self._url = settings.database_url("darkroom")
        self._registry = registry

    def find(self, model: str, content_digest: str) -> Withdrawn | None:
        for version, withdrawn in database.withdrawn(self._url, model).items():
            try:
                content = self._registry.version(model, version).tags.get("content")
            except NotFound:
                continue
            if content == content_digest:
                return withdrawn
        return None
