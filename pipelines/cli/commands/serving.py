"""Commands of serving: promote, rollback, deployments."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines import settings as settings_module
from pipelines.cli.tables import console
from pipelines.core import recipe as recipes
from pipelines.core.actors import person
from pipelines.core.errors import NotFound, UserError
from pipelines.settings import Settings

if TYPE_CHECKING:
    from pipelines.core.deployments import Deployment
    from pipelines.core.ports import ModelRegistry, ModelVersion
    from pipelines.core.values import Deployed

Model = Annotated[str, typer.Option("--model", help="Registered model; the default model unless given.")]
AsJson = Annotated[bool, typer.Option("--json", help="For programs.")]


def register(app: typer.Typer) -> None:
    """Add this group's commands."""
    app.command()(promote)
    app.command()(rollback)
    app.command()(deployments)


def promote(
    version: Annotated[
        str, typer.Argument(metavar="VERSION", help="Number of a registered version, or `challenger` or `champion`.")
    ],
    model: Model = "",
    as_json: AsJson = False,
) -> None:
    """Put any registered version behind the gateway, and make it the champion.

    Its bento is built with the serving code as it is now, started beside what serves, and proved on the golden set;
    only then does traffic move. A version that fails changes nothing (exit code 1). `darkroom models` lists versions.
    """
    from pipelines.adapters.packaging import BentoArchives, build_bento
    from pipelines.cli.execute import storage_of
    from pipelines.cli.model_registry import AuditedRegistry
    from pipelines.cli.requests import DeploymentRequests
    from pipelines.cli.wiring.serving import spec_of
    from pipelines.core.rollouts import serve

    began = time.monotonic()
    settings = settings_module.load()
    registry = AuditedRegistry(settings, person())
    chosen = _version(registry, model or settings.default_model, version)
    scratch = settings.home / "scratch" / f"promote-{time.time_ns()}"
    try:
        package = registry.package(chosen.model, chosen.version)
        bento = build_bento(package, version=chosen.version, out=scratch / "bento")
        build = BentoArchives(storage_of(settings), settings.home / "cache").keep(
            bento, model=chosen.model, version=chosen.version, package_digest=package.digest
        )
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    deployed = serve(
        build,
        spec_of(_rollout(settings, chosen.model)),
        DeploymentRequests(settings, person()),
        registry,
        gateway_url=settings.gateway_url,
        kind="promote",
    )
    _tell(deployed, began, as_json)


def rollback(model: Model = "", as_json: AsJson = False) -> None:
    """Return to the last successful deployment before the current one, proved again on the golden set.

    The very build that served then serves again, so nothing is built. Rolling back twice goes back twice; `darkroom
    promote VERSION` goes anywhere.
    """
    from pipelines.cli.model_registry import AuditedRegistry
    from pipelines.cli.requests import DeploymentRequests
    from pipelines.core.rollouts import roll_back

    began = time.monotonic()
    settings = settings_module.load()
    deployed = roll_back(
        model or settings.default_model,
        DeploymentRequests(settings, person()),
        AuditedRegistry(settings, person()),
        gateway_url=settings.gateway_url,
    )
    _tell(deployed, began, as_json)


def deployments(
    model: Annotated[str, typer.Option("--model", help="Only of this model.")] = "",
    limit: Annotated[int, typer.Option(min=1, help="Newest so many deployments.")] = 20,
    as_json: AsJson = False,
) -> None:
    """List what served, serves and failed to, newest first. Who asked for what is in `darkroom audit list`."""
    from rich.table import Table

    from pipelines.adapters import database

    found = database.deployments(settings_module.load().database_url("darkroom"), model or None, limit)
    if as_json:
        typer.echo(json.dumps({"deployments": [asdict(one) for one in found]}, indent=1, default=str))
        return
    table = Table()
    for column in ("id", "model", "version", "kind", "state", "asked (UTC)", "by", "reason"):
        table.add_column(column, overflow="fold")
    for one in found:
        table.add_row(*_row(one))
    console().print(table, markup=False)


def _row(one: Deployment) -> list[str]:
    asked = one.requested_at.strftime("%Y-%m-%d %H:%M:%S")
    return [str(one.id), one.build.model, str(one.build.version), one.kind, one.state, asked, one.actor, one.reason]


def _version(registry: ModelRegistry, model: str, text: str) -> ModelVersion:
    """Raises UserError, NotFound."""
    if text.isdecimal():
        return registry.version(model, int(text))
    name, colon, number = text.partition(":")
    if colon and number.isdecimal():
        return registry.version(name, int(number))
    if text not in ("champion", "challenger"):
        raise UserError(f"VERSION {text!r}: expected a number, `challenger` or `champion`")
    found = registry.alias(model, text)
    if found is None:
        raise NotFound(f"model {model} has no {text}; `darkroom models` lists versions")
    return found


def _rollout(settings: Settings, model: str) -> recipes.Rollout:
    found = recipes.find(model, *settings.recipe_folders)
    return found.rollout if found else recipes.Rollout()


def _tell(deployed: Deployed, began: float, as_json: bool) -> None:
    seconds = round(time.monotonic() - began, 2)
    if as_json:
        typer.echo(json.dumps({**asdict(deployed), "seconds": seconds}))
        return
    typer.echo(f"{deployed.model} version {deployed.version} serves at {deployed.url} ({seconds:.1f} s)")
