"""The typer application: every command but `step`, which starts too often to pay for it."""

from __future__ import annotations

import typer

from pipelines.cli.commands import audit, data, features, imports, keys, models, platform, predictions, run, serving

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Darkroom: from a folder of labelled images to a served, proved and traceable classifier.",
)
for group in (platform, run, models, imports, features, serving, predictions, keys, audit, data):
    group.register(app)


@app.command(
    "step",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
)
def step(context: typer.Context) -> None:
    """Run one step of a run; this is what Airflow's tasks call."""
    from pipelines.cli.step import main

    raise typer.Exit(main(context.args))
