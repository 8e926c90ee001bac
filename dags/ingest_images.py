"""ingest_images: plan → ingest (a task a shard) → assemble → validate → materialize → accept, once a data interval."""

from __future__ import annotations

from datetime import datetime

from airflow.sdk import DAG, CronDataIntervalTimetable, Param

from dags._step import dag_id, recipes, snapshot_asset, step
from pipelines.core.recipe import Recipe

DOC = """
Takes the images of one data interval from `{uri}`, checks them, and makes them part of the dataset **{name}**.
A rejected interval is parked and stops here. What is accepted announces the asset `snapshot-{name}`, which trains.

Past days: `darkroom backfill --from 2024-01-01 --to 2024-01-05 --recipe {name}`.
"""

# A manual run names its interval; a scheduled one and a backfill's take the first day of theirs.
INTERVAL = "{{ (params.interval or '') if dag_run.run_type == 'manual' else data_interval_start | ds }}"


def build(recipe: Recipe) -> DAG:
    """The DAG of one recipe. Undated sources are one interval, `static`, and run when asked."""
    dated = recipe.source.dated
    schedule = recipe.schedule
    with DAG(
        dag_id=dag_id("ingest_images", recipe.name),
        schedule=CronDataIntervalTimetable(schedule.ingest_cron, timezone="UTC") if dated else None,
        start_date=datetime.fromisoformat(f"{schedule.start_date}T00:00:00+00:00"),
        catchup=False,
        max_active_runs=2,
        tags=["darkroom", "ingest", recipe.name],
        description=f"Ingest, validate and materialize the images of {recipe.name}",
        doc_md=DOC.format(uri=recipe.source.uri, name=recipe.name),
        params={
            "interval": Param(
                None if dated else "static",
                type=["null", "string"],
                pattern=r"^(static|\d{4}-\d{2}-\d{2})$",
                description="Manual runs: the day to ingest (YYYY-MM-DD), or `static` for a source without dates.",
            )
        },
    ) as dag:
        arguments = ("--recipe", recipe.name, "--interval", INTERVAL)
        plan = step("plan", arguments=arguments, fan_out=True, doc="Lists the interval's files and cuts shards.")
        ingest = step("ingest", over=plan.output, doc="Hashes, decodes and measures the images of one shard.")
        assemble = step("assemble", doc="Joins the shards into the interval's manifest.")
        validate = step("validate", doc="Great Expectations; a blocking failure parks the interval and stops here.")
        materialize = step("materialize", doc="Feature rows of the interval, offline and online (Feast).")
        asset = snapshot_asset(recipe.name)
        accept = step("accept", outlets=[asset], skip_unchanged=True, doc="Moves the dataset's head; announces it.")
        plan >> ingest >> assemble >> validate >> materialize >> accept
    return dag


for _recipe in recipes()[0]:
    globals()[f"dag_{_recipe.name}"] = build(_recipe)
