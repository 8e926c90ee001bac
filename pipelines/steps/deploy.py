"""Put a build behind the gateway: ask for it, wait until it serves or failed, then move the champion.

No process is started here: the reconciler of the machine does that, and does it again after a reboot.
"""

from __future__ import annotations

from pathlib import Path

from pipelines.core.deployments import ServingSpec
from pipelines.core.ports import BentoKeeper, Deployments, ModelRegistry
from pipelines.core.rollouts import serve
from pipelines.core.values import Built, Deployed


def deploy(
    bento: Path,
    built: Built,
    spec: ServingSpec,
    keeper: BentoKeeper,
    deployments: Deployments,
    registry: ModelRegistry,
    *,
    gateway_url: str,
) -> Deployed:
    """Converges at once where exactly this already serves. Raises DeploymentFailed with the reason."""
    build = keeper.keep(bento, model=built.model, version=built.version, package_digest=built.package_digest)
    return serve(build, spec, deployments, registry, gateway_url=gateway_url, kind="deploy")
