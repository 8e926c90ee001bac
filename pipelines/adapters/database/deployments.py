"""Deployments and the desired state of each model. What is asked for here, the reconciler brings about."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from pipelines.adapters.database.connection import MODEL_LOCKS, Row, connect
from pipelines.adapters.database.history import append
from pipelines.core.deployments import Build, Deployment, Desired, ServingSpec
from pipelines.core.errors import NotFound, PlatformError

if TYPE_CHECKING:
    import psycopg


def request_deployment(
    url: str, build: Build, spec: ServingSpec, *, actor: str, kind: str = "deploy", origin: int | None = None
) -> Deployment:
    """Ask for a build to serve, or return the deployment that already does or is about to.

    One at a time is asked for a model: a request that is still on its way up and wants something else is marked as
    superseded, and its waiter learns so.
    """
    with connect(url) as connection:
        _lock_model(connection, build.model)
        desired = _desired(connection, build.model)
        for running in (desired.desired, desired.live):
            if running is not None and (running.build, running.spec) == (build, spec):
                return running
            if running is not None and running is desired.desired:
                _fail(connection, running, "superseded by a newer request", actor)
        row = _one(
            connection,
            "INSERT INTO deployments (model, version, package_digest, bento_digest, bento_key, spec, kind, origin,"
            " actor) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s) RETURNING *",
            [*asdict(build).values(), json.dumps(asdict(spec)), kind, origin, actor],
        )
        deployment = _deployment(row)
        connection.execute(
            "INSERT INTO models (model, desired) VALUES (%s, %s)"
            " ON CONFLICT (model) DO UPDATE SET desired = EXCLUDED.desired, updated_at = now()",
            [build.model, deployment.id],
        )
        append(connection, build.model, deployment.id, "requested", {**asdict(build), "kind": kind}, actor)
        return deployment


def wait_for(url: str, deployment_id: int, timeout_s: float, poll_s: float = 0.1) -> Deployment:
    """The deployment once it is live, retired or failed. Raises PlatformError where nobody brings it up in time.

    A database that goes away meanwhile is waited for too.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            return _wait_connected(url, deployment_id, deadline, poll_s)
        except PlatformError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)


def _wait_connected(url: str, deployment_id: int, deadline: float, poll_s: float) -> Deployment:
    with connect(url) as connection:
        connection.autocommit = True
        while (deployment := _get(connection, deployment_id)).state in ("requested", "starting"):
            if time.monotonic() > deadline:
                raise PlatformError(
                    f"deployment {deployment_id} of {deployment.build.model} is still {deployment.state};"
                    " is the platform up (`darkroom status`)?"
                )
            time.sleep(poll_s)
        return deployment


def get(url: str, deployment_id: int) -> Deployment:
    """Raises NotFound."""
    with connect(url) as connection:
        return _get(connection, deployment_id)


def _get(connection: psycopg.Connection[Row], deployment_id: int) -> Deployment:
    row = connection.execute("SELECT * FROM deployments WHERE id = %s", [deployment_id]).fetchone()
    if row is None:
        raise NotFound(f"deployment {deployment_id}: no such deployment; `darkroom deployments` lists them")
    return _deployment(row)


def current(url: str, model: str) -> Deployment | None:
    """The deployment that serves a model."""
    with connect(url) as connection:
        return _desired(connection, model).live


def previous(url: str, model: str) -> Deployment | None:
    """The last successful deployment before the current one, of another package.

    After a rollback it is the one before that which the rollback returned to: rolling back twice goes back twice. What
    a rollback brought back counts itself, so that a later one never returns to what was rolled back from.
    """
    with connect(url) as connection:
        live = _desired(connection, model).live
        if live is None:
            return None
        row = connection.execute(
            "SELECT * FROM deployments WHERE model = %s AND live_at IS NOT NULL AND id < %s"
            " AND package_digest <> %s ORDER BY id DESC LIMIT 1",
            [model, live.origin, live.build.package_digest],
        ).fetchone()
    return _deployment(row) if row else None


def has_served(url: str, model: str, version: int, package_digest: str) -> bool:
    """Whether this very version has served here, and its model still does, by whatever version, or is about to."""
    with connect(url) as connection:
        row = connection.execute(
            "SELECT 1 AS found FROM deployments d JOIN models m USING (model) WHERE d.model = %s AND d.version = %s"
            " AND d.package_digest = %s AND d.live_at IS NOT NULL AND coalesce(m.live, m.desired) IS NOT NULL LIMIT 1",
            [model, version, package_digest],
        ).fetchone()
    return row is not None


def deployments(url: str, model: str | None = None, limit: int = 100) -> list[Deployment]:
    """Newest first."""
    with connect(url) as connection:
        rows = connection.execute(
            "SELECT * FROM deployments WHERE %(model)s::text IS NULL OR model = %(model)s"
            " ORDER BY id DESC LIMIT %(limit)s",
            {"model": model, "limit": limit},
        ).fetchall()
    return [_deployment(row) for row in rows]


# --- the reconciler's side -----------------------------------------------------------------------------------------


def desired_state(url: str) -> list[Desired]:
    """Every model that was ever asked for."""
    with connect(url) as connection:
        return _desired_state(connection)


def _desired_state(connection: psycopg.Connection[Row]) -> list[Desired]:
    names = [row["model"] for row in connection.execute("SELECT model FROM models ORDER BY model")]
    return [_desired(connection, name) for name in names]


class Watch:
    """The desired state, read often over one connection: logging in costs more than the question."""

    def __init__(self, url: Callable[[], str]) -> None:
        self._url = url
        self._stack: ExitStack | None = None
        self._connection: psycopg.Connection[Row] | None = None

    def read(self) -> list[Desired]:
        """Raises PlatformError; the next call connects again."""
        import psycopg

        try:
            if self._connection is None:
                self._stack = ExitStack()
                self._connection = self._stack.enter_context(connect(self._url()))
                self._connection.autocommit = True
            return _desired_state(self._connection)
        except (psycopg.Error, PlatformError) as error:
            self.close()
            raise PlatformError(str(error)) from error

    def close(self) -> None:
        import psycopg

        stack, self._stack, self._connection = self._stack, None, None
        if stack is not None:
            with suppress(psycopg.Error, PlatformError):
                stack.close()


def mark_starting(url: str, deployment_id: int) -> None:
    with connect(url) as connection:
        connection.execute(
            "UPDATE deployments SET state = 'starting' WHERE id = %s AND state = 'requested'", [deployment_id]
        )


def mark_live(url: str, deployment: Deployment, *, actor: str) -> bool:
    """Record that traffic went over to a deployment. False where it was superseded meanwhile: move the traffic back."""
    model = deployment.build.model
    with connect(url) as connection:
        _lock_model(connection, model)
        state = _state(connection, deployment.id)
        if state not in ("requested", "starting"):
            return state == "live"  # recorded before, by a commit whose answer was lost
        live = _desired(connection, model).live
        if live is not None:
            connection.execute("UPDATE deployments SET state = 'retired', ended_at = now() WHERE id = %s", [live.id])
        connection.execute("UPDATE deployments SET state = 'live', live_at = now() WHERE id = %s", [deployment.id])
        connection.execute(
            "UPDATE models SET live = %(id)s, desired = NULLIF(desired, %(id)s), updated_at = now()"
            " WHERE model = %(model)s",
            {"id": deployment.id, "model": model},
        )
        detail = {**_identity(deployment), "package_digest": deployment.build.package_digest}
        replaced = {"replaced": live.id, "replaced_version": live.build.version} if live else {}
        append(connection, model, deployment.id, f"{deployment.kind}_live", {**detail, **replaced}, actor)
        return True


def mark_failed(url: str, deployment: Deployment, reason: str, *, actor: str) -> None:
    """Record that a deployment did not come up; what served before still does."""
    with connect(url) as connection:
        _lock_model(connection, deployment.build.model)
        _fail(connection, deployment, reason, actor)


def _fail(connection: psycopg.Connection[Row], deployment: Deployment, reason: str, actor: str) -> None:
    if _state(connection, deployment.id) not in ("requested", "starting"):
        return
    connection.execute(
        "UPDATE deployments SET state = 'failed', reason = %s, ended_at = now() WHERE id = %s", [reason, deployment.id]
    )
    connection.execute("UPDATE models SET desired = NULL, updated_at = now() WHERE desired = %s", [deployment.id])
    detail = {**_identity(deployment), "reason": reason}
    append(connection, deployment.build.model, deployment.id, f"{deployment.kind}_failed", detail, actor)


def _identity(deployment: Deployment) -> dict[str, Any]:
    return {"version": deployment.build.version, "requested_by": deployment.actor}


# --- rows ----------------------------------------------------------------------------------------------------------


def _lock_model(connection: psycopg.Connection[Row], model: str) -> None:
    connection.execute("SELECT pg_advisory_xact_lock(%s, hashtext(%s))", [MODEL_LOCKS, model])


def _state(connection: psycopg.Connection[Row], deployment_id: int) -> str:
    return str(_one(connection, "SELECT state FROM deployments WHERE id = %s", [deployment_id])["state"])


def _one(connection: psycopg.Connection[Row], statement: str, values: list[Any]) -> Row:
    row = connection.execute(statement.encode(), values).fetchone()
    assert row is not None
    return row


def _desired(connection: psycopg.Connection[Row], model: str) -> Desired:
    rows = connection.execute(
        "SELECT d.*, d.id = m.live AS is_live FROM models m JOIN deployments d ON d.id IN (m.desired, m.live)"
        " WHERE m.model = %s",
        [model],
    ).fetchall()
    live = [_deployment(row) for row in rows if row["is_live"]]
    desired = [_deployment(row) for row in rows if not row["is_live"]]
    return Desired(model=model, desired=desired[0] if desired else None, live=live[0] if live else None)


def _deployment(row: Row) -> Deployment:
    return Deployment(
        id=row["id"],
        build=Build(**{key: row[key] for key in Build.__dataclass_fields__}),
        spec=ServingSpec(**row["spec"]),
        kind=row["kind"],
        origin=row["origin"],
        state=row["state"],
        reason=row["reason"],
        actor=row["actor"],
        requested_at=row["requested_at"],
        live_at=row["live_at"],
        ended_at=row["ended_at"],
    )
