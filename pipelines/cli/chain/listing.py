"""`darkroom runs`: what the run folders say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import typer

from pipelines.cli.chain import graph
from pipelines.cli.execute import storage_of
from pipelines.cli.past_runs import PastRun, past_runs
from pipelines.cli.tables import console
from pipelines.core import recipe as recipes
from pipelines.core.datasets import list_parked
from pipelines.settings import Settings


def list_runs(settings: Settings, recipe: str | None, limit: int) -> list[dict[str, Any]]:
    """Runs that have begun, newest first."""
    storage = storage_of(settings)
    known, broken = recipes.registered(*settings.recipe_folders)
    for error in broken.values():
        typer.secho(f"warning: {error}", err=True, fg="yellow")
    names = [recipe] if recipe else sorted({*known, *graph.imported(storage)})
    found: list[tuple[PastRun, Sequence[str]]] = []
    for name in names:
        found += [(one, graph.INGEST) for one in past_runs(storage, graph.ingest_dag(settings, name))]
        found += [(one, graph.IMPORT) for one in past_runs(storage, graph.import_dag(name))]
        found += [(one, graph.TRAIN) for one in past_runs(storage, graph.train_dag(settings, name))]
    found.sort(key=lambda pair: pair[0].ended_at, reverse=True)
    parked = {name: {one.interval: one.reason for one in list_parked(storage, name)} for name in names}
    return [_row(one, steps, parked[one.request.recipe.name]) for one, steps in found[:limit]]


def _row(past: PastRun, steps: Sequence[str], parked: Mapping[str, str]) -> dict[str, Any]:
    """`parked` holds the reasons of the dataset's parked intervals."""
    done = [step for step in steps if past.finished(step)]
    idle = any(one.facts.get("nothing_to_do") for one in past.references)
    reason = parked.get(past.request.interval, "") if "accept" in steps and not past.finished("accept") else ""
    state = "nothing to do" if idle else "complete" if len(done) == len(steps) else "incomplete"
    return {
        "run": str(past.run),
        "dag_id": past.run.dag_id,
        "run_id": past.run.run_id,
        "recipe": past.request.recipe.name,
        "interval": past.request.interval,
        "as_of": past.request.as_of,
        "kind": past.run.run_id.partition("__")[0].replace("_", " "),
        "last_step": done[-1] if done else "",
        "state": "parked" if reason else state,
        "reason": reason,
        "ended_at": past.ended_at,
        "seconds": round(sum(one.process_s for one in past.references), 2),
        "reused": sum(one.reused for one in past.references),
        "steps": len(past.references),
    }


def print_table(rows: Sequence[dict[str, Any]]) -> None:
    """For people."""
    from rich.table import Table

    if not rows:
        console().print("no runs yet; `darkroom run` makes the first")
        return
    table = Table(box=None, pad_edge=False)
    for column in ("dag", "for", "started by", "last step", "state", "ended (UTC)"):
        table.add_column(column)
    for column in ("steps", "reused", "seconds"):
        table.add_column(column, justify="right")
    for row in rows:
        words = (row["dag_id"], row["interval"] or row["as_of"], row["kind"], row["last_step"], row["state"])
        numbers = (str(row["steps"]), str(row["reused"]), f"{row['seconds']:.1f}")
        table.add_row(*words, row["ended_at"][:19].replace("T", " "), *numbers)
    console().print(table)
