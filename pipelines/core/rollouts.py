"""Ask for a build, wait until it serves, make its version the champion: what deploy, promote and rollback share."""

from __future__ import annotations

from pipelines.core.deployments import Build, Deployment, ServingSpec
from pipelines.core.errors import DeploymentFailed, UserError
from pipelines.core.ports import Deployments, ModelRegistry
from pipelines.core.values import Deployed

MARGIN_S = 120.0
"""For unpacking, the golden set, the gateway, and a rollout of the same model that is still under way."""


def serve(
    build: Build,
    spec: ServingSpec,
    deployments: Deployments,
    registry: ModelRegistry,
    *,
    gateway_url: str,
    kind: str,
    origin: int | None = None,
) -> Deployed:
    """Make a kept build serve, and its version the champion. Raises DeploymentFailed with the reason."""
    asked = deployments.request(build, spec, kind=kind, origin=origin)
    found = deployments.wait(asked.id, spec.ready_timeout_s + MARGIN_S)
    if found.state != "live":
        raise DeploymentFailed(_explain(found, deployments.current(build.model)))
    deployments.confirm(build, spec.ready_timeout_s)
    registry.promote(build.model, build.version)
    return Deployed(
        deployment_id=found.id,
        model=build.model,
        version=build.version,
        package_digest=build.package_digest,
        url=f"{gateway_url}/v1/models/{build.model}/classify",
    )


def roll_back(model: str, deployments: Deployments, registry: ModelRegistry, *, gateway_url: str) -> Deployed:
    """Return to the last successful deployment before the current one, and prove it again.

    Raises UserError where there is none, DeploymentFailed with the reason.
    """
    before = deployments.previous(model)
    if before is None:
        raise UserError(f"model {model}: no earlier deployment to return to; `darkroom deployments` lists them")
    return serve(
        before.build, before.spec, deployments, registry, gateway_url=gateway_url, kind="rollback", origin=before.origin
    )


def _explain(failed: Deployment, live: Deployment | None) -> str:
    now = f"version {live.build.version} still serves" if live else "nothing serves yet"
    reason = failed.reason or "another deployment replaced it at once"
    return f"{failed.build.model} version {failed.build.version} (deployment {failed.id}): {reason}; {now}"
