"""Deployments as values: what was built, how it should run, and what became of it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, kw_only=True)
class ServingSpec:
    """How a deployment runs."""

    workers: int = 1
    threads: int = 1
    ready_timeout_s: float = 60.0
    drain_timeout_s: float = 15.0
    top_k: int = 5


@dataclass(frozen=True, kw_only=True)
class Build:
    """A version's bento in the object store."""

    model: str
    version: int
    package_digest: str
    bento_digest: str
    """SHA-256 of the archive."""
    bento_key: str
    """Storage key of the archive."""


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """One request to serve a build, and what became of it."""

    id: int
    build: Build
    spec: ServingSpec
    kind: str
    """deploy, promote or rollback."""
    origin: int
    """The deployment that first brought this build up; a rollback carries the one it returned to."""
    state: str
    """requested, starting, live, retired or failed."""
    reason: str
    actor: str
    """Who asked for it; see core.actors."""
    requested_at: datetime
    live_at: datetime | None
    ended_at: datetime | None


@dataclass(frozen=True, kw_only=True)
class Withdrawn:
    """A version that a rollback took away, and that has not served again since."""

    version: int
    returned_to: int
    """The version that took its place."""
    at: str
    """UTC, ISO 8601."""


@dataclass(frozen=True, kw_only=True)
class Desired:
    """What a model should serve and what it serves."""

    model: str
    desired: Deployment | None
    """A deployment that is still to be brought up."""
    live: Deployment | None
