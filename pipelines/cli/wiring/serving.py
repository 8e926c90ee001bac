"""Wiring of the serving steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipelines.cli.registry import StepContext, StepSpec
from pipelines.core.recipe import Rollout
from pipelines.core.values import Built, Deployed, Registered

if TYPE_CHECKING:
    from pipelines.core.deployments import ServingSpec

# The serving code that goes into a bento is part of the build's code.
_SERVED = ("bentos.classifier.service", "bentos.kit.worker")


def spec_of(rollout: Rollout) -> ServingSpec:
    """How a deployment runs, from the recipe."""
    from pipelines.core.deployments import ServingSpec

    return ServingSpec(
        workers=rollout.workers,
        threads=rollout.threads,
        ready_timeout_s=rollout.ready_timeout_s,
        drain_timeout_s=rollout.drain_timeout_s,
        top_k=rollout.top_k,
    )


def _build_bento(ctx: StepContext) -> Built:
    from pipelines.adapters import packaging
    from pipelines.core import package_store
    from pipelines.steps.build_bento import build_bento

    # Not this run's own: equal work of an earlier run may be the version that is registered.
    registered = ctx.value("register", Registered)
    package = package_store.get(ctx.storage, registered.package_digest, ctx.settings.home / "cache", verify=False)
    return build_bento(package.folder, registered, packaging.build_bento, ctx.out)


def _deploy(ctx: StepContext) -> Deployed:
    from pipelines.adapters.packaging import BentoArchives
    from pipelines.cli.model_registry import AuditedRegistry
    from pipelines.cli.requests import DeploymentRequests
    from pipelines.steps.deploy import deploy

    settings = ctx.settings
    return deploy(
        ctx.one("build_bento").folder / "bento",
        ctx.value("build_bento", Built),
        spec_of(ctx.recipe.rollout),
        BentoArchives(ctx.storage, settings.home / "cache"),
        DeploymentRequests(settings, ctx.actor),
        AuditedRegistry(settings, ctx.actor),
        gateway_url=settings.gateway_url,
    )


SPECS: tuple[StepSpec, ...] = (
    StepSpec(
        name="build_bento",
        wire=_build_bento,
        roots=("pipelines.steps.build_bento", "pipelines.adapters.packaging", *_SERVED),
        upstream=("register", "gate"),
    ),
    StepSpec(
        name="deploy",
        wire=_deploy,
        roots=("pipelines.steps.deploy",),
        upstream=("build_bento",),
        sections=("rollout",),
        effect=True,
    ),
)
