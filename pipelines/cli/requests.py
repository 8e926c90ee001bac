"""Deployments as commands and steps ask for them: rows in the database, seen through the gateway."""

from __future__ import annotations

from pipelines.adapters import database
from pipelines.adapters.gateway import wait_until_answers
from pipelines.core.deployments import Build, Deployment, ServingSpec
from pipelines.settings import Settings


class DeploymentRequests:
    """Fulfils `core.ports.Deployments`."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._url = settings.database_url("darkroom")

    def request(
        self, build: Build, spec: ServingSpec, *, kind: str = "deploy", origin: int | None = None
    ) -> Deployment:
        return database.request_deployment(self._url, build, spec, kind=kind, origin=origin)

    def wait(self, deployment_id: int, timeout_s: float) -> Deployment:
        return database.wait_for(self._url, deployment_id, timeout_s)

    def confirm(self, build: Build, timeout_s: float) -> None:
        wait_until_answers(self._settings, build, timeout_s)

    def current(self, model: str) -> Deployment | None:
        return database.current(self._url, model)

    def previous(self, model: str) -> Deployment | None:
        return database.previous(self._url, model)
