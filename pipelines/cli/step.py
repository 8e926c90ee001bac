"""`darkroom step NAME --run DAG/RUN`: one step as a command, started by Airflow or by hand.

Only argparse is used: a step's start is paid for by every task.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from pipelines import settings as settings_module
from pipelines.core import recipe as recipes
from pipelines.core.actors import person
from pipelines.core.errors import UserError
from pipelines.core.processes import die_with_parent
from pipelines.core.runs import RunId, RunRequest


def main(arguments: Sequence[str]) -> int:
    """Run the step. Errors are raised to the caller, which maps them to exit codes."""
    from pipelines.cli.wiring import STEPS, steps_of

    parser = argparse.ArgumentParser(prog="darkroom step", description="Run one step of a run.")
    parser.add_argument("step", choices=list(STEPS), metavar="STEP", help=", ".join(STEPS))
    parser.add_argument(
        "--run", required=True, metavar="DAG/RUN", help="the run's folder; made by the run's first step"
    )
    parser.add_argument("--shard", type=int, help="shard number of a mapped step")
    parser.add_argument("--recipe", metavar="NAME", help="first step of a run: the recipe")
    parser.add_argument("--set", default="{}", metavar="JSON", help='first step: changed keys, {"training.epochs": 5}')
    parser.add_argument("--interval", default="", help="first step of an ingest run: YYYY-MM-DD or 'static'")
    parser.add_argument("--as-of", default="", help="first step of a training run: intervals up to this day only")
    parser.add_argument("--force", action="store_true", help="compute even where a finished result exists")
    parser.add_argument("--outcome", type=Path, metavar="FILE", help="write the outcome there, as JSON")
    parser.add_argument("--actor", default=person(), help="who runs it, for the audit log; you, by default")
    parser.add_argument("--parent", type=int, metavar="PID", help="end when this process, which started us, ends")
    options = parser.parse_args(arguments)
    if options.parent:
        die_with_parent(options.parent)

    from pipelines.cli import preflight
    from pipelines.cli.chain.graph import TRAIN
    from pipelines.cli.execute import execute, storage_of, write_outcome

    settings = settings_module.load()
    request = None
    if options.recipe is not None:
        recipe = recipes.get(options.recipe, *settings.recipe_folders)
        changes = {key: value for key, value in recipes.changes(options.set).items() if value is not None}
        request = RunRequest(recipe=recipes.override(recipe, changes), interval=options.interval, as_of=options.as_of)
    run = RunId.parse(options.run)
    steps = steps_of(run.dag_id)
    if options.step not in steps:
        raise UserError(f"step {options.step}: {run} has no such step; it has {', '.join(steps)}")
    if request is not None:
        training = options.step in TRAIN
        preflight.check(storage_of(settings), request.recipe, ingest=not training, training=training)
    outcome = execute(
        settings,
        steps[options.step],
        run,
        shard=options.shard,
        request=request,
        force=options.force,
        actor=options.actor,
    )
    if options.outcome:
        write_outcome(options.outcome, outcome)
    return 0
