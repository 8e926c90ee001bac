"""`darkroom runs`: what the run folders say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipelines.cli.chain import graph
from pipelines.cli.execute import storage_of
from pipelines.cli.past_runs import PastRun, past_runs
from pipelines.core import recipe as recipes
from pipelines.settings import Settings


def list_runs(settings: Settings, recipe: str | None, limit: int) -> list[dict[str, Any]]:
    """Runs that have begun, newest first."""
    storage = storage_of(settings)
    names = [recipe] if recipe else sorted(recipes.registered(*settings.recipe_folders))
    found: list[tuple[PastRun, Sequence[str]]] = []
    for name in names:
        found += [(one, graph.INGEST) for one in past_runs(storage, graph.ingest_dag(settings, name))]
        found += [(one, graph.TRAIN) for one in past_runs(storage, graph.train_dag(settings, name))]
    found.sort(key=lambda pair: pair[0].ended_at, reverse=True)
    return [_row(one, steps) for one, steps in found[:limit]]


def _row(past: PastRun, steps: Sequence[str]) -> dict[str, Any]:
    done = [step for step in steps if past.finished(step)]
    return {
        "run": str(past.run),
        "recipe": past.request.recipe.name,
        "interval": past.request.interval,
        "as_of": past.request.as_of,
        "last_step": done[-1] if done else "",
        "complete": len(done) == len(steps),
        "ended_at": past.ended_at,
        "seconds": round(sum(one.process_s for one in past.references), 2),
        "reused": sum(one.reused for one in past.references),
        "steps": len(past.references),
    }


def print_table(rows: Sequence[dict[str, Any]]) -> None:
    """For people."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in ("run", "interval", "last step", "ended (UTC)"):
        table.add_column(column, overflow="fold")
    for column in ("steps", "reused", "seconds"):
        table.add_column(column, justify="right")
    for row in rows:
        last = row["last_step"] if row["complete"] else f"{row['last_step']} (incomplete)"
        numbers = (str(row["steps"]), str(row["reused"]), f"{row['seconds']:.1f}")
        table.add_row(
            row["run"], row["interval"] or row["as_of"], last, row["ended_at"][:19].replace("T", " "), *numbers
        )
    Console().print(table if rows else "no runs yet; `darkroom run` makes the first")
