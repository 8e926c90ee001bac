"""Commands that run the chain: run, backfill, runs."""

from __future__ import annotations

import json
from datetime import date
from typing import Annotated

import typer

from pipelines import settings as settings_module
from pipelines.core.errors import UserError


def register(app: typer.Typer) -> None:
    """Add this group's commands."""
    app.command()(run)
    app.command()(backfill)
    app.command()(runs)


def run(
    data: Annotated[
        str | None,
        typer.Option(
            help="Your images: a folder with a folder per class (train/val/test above them if you like), a tar or zip "
            "of one, a CSV or Parquet table (uri, label), or an s3:// prefix. Without: scikit-learn's scanned digits."
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Name of dataset, model and route; by default the folder's. Or a known recipe.")
    ] = None,
    direct: Annotated[
        bool, typer.Option("--direct", help="The same steps without Airflow, one after the other.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The summary as one JSON object on stdout.")] = False,
) -> None:
    """From images to a served model: platform up, ingest, train, deploy, ask the gateway.

    Called again it does what is left, and nothing where nothing changed: new or changed files, an edited recipe
    (`<home>/recipes/NAME.toml`) and new code are picked up, a run that is under way is followed, a failed one is run
    again. After a rollback or a promotion, what a person chose goes on serving. Exit code 1: a gate said no (the data's
    or the model's) or a deployment failed, 2: something for you to mend.
    """
    from pipelines.cli.chain import command, summary

    settings = settings_module.load()
    outcome, where = command.run_chain(settings, command.recipe_for(settings, data, name), direct=direct)
    typer.echo(json.dumps(summary.as_json(outcome, where), indent=1) if as_json else summary.render(outcome, where))


def backfill(
    first: Annotated[str, typer.Option("--from", metavar="YYYY-MM-DD", help="First day.")],
    last: Annotated[str, typer.Option("--to", metavar="YYYY-MM-DD", help="Last day, included.")],
    recipe: Annotated[str | None, typer.Option(help="Which recipe; by default the default model's.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Ingest past days through Airflow's backfill.

    Days that succeeded are left alone, failed ones are run again; done twice it changes nothing. A backfill of this
    recipe that runs already is followed first. What is accepted triggers training by itself, once.
    """
    from pipelines.cli.chain import command
    from pipelines.core import recipe as recipes

    settings = settings_module.load()
    chosen = recipes.get(recipe or settings.default_model, *settings.recipe_folders)
    if not chosen.source.dated:
        raise UserError(f"{chosen.name}: its source has no days; `darkroom run` ingests it as a whole")
    days = _day("--from", first), _day("--to", last)
    if days[0] > days[1]:
        raise UserError(f"--from {first} is after --to {last}")
    ran = command.run_backfill(settings, chosen, *days)
    if as_json:
        typer.echo(json.dumps({"recipe": chosen.name, "ran": [day.isoformat() for day in ran]}))
    else:
        typer.echo(f"{len(ran)} days ran" if ran else "every day in the range has succeeded before; nothing ran")


def runs(
    recipe: Annotated[str | None, typer.Option(help="Only this recipe's.")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="How many, newest first.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON list on stdout.")] = False,
) -> None:
    """List runs with their steps: what ran, when, how long, and how far it came."""
    from pipelines.cli.chain import listing

    found = listing.list_runs(settings_module.load(), recipe, limit)
    typer.echo(json.dumps(found, indent=1)) if as_json else listing.print_table(found)


def _day(option: str, text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError as error:
        raise UserError(f"{option} {text}: expected YYYY-MM-DD") from error
