"""train_classifier: from the dataset's head to a served model; weekly, by hand, and when new images were accepted."""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import DAG, AssetOrTimeSchedule, CronTriggerTimetable, Param, chain

from dags._step import changes, dag_id, recipes, snapshot_asset, step
from pipelines.core.recipe import Recipe, form_fields

DOC = """
Trains the classifier **{name}** on everything its dataset holds (or held up to `as_of`), measures it, registers it, and
deploys it where the gate agrees. It waits until the data has been quiet for {quiet:g} s, so that a backfill of a year
trains once; steps whose inputs have not changed are reused.

The gateway answers at `/v1/models/{name}/classify`.
"""

STEPS = {
    "settle": "Waits (deferred, so that it holds no worker) until the data is quiet.",
    "snapshot": "Composes the accepted intervals into one immutable snapshot with its splits.",
    "training_set": "Point-in-time join of the snapshot with its features (Feast).",
    "prepare": "Decodes the training and validation images once, to the model's size.",
    "train": "Trains the network (torch); metrics go to MLflow while it runs.",
    "export": "ONNX, int8, parity, latency, calibration: the model package.",
    "evaluate": "Scores the variant that will serve on the test images, through the serving path.",
    "compare": "Scores candidate and champion on common test images.",
    "register": "Makes the package a model version in MLflow.",
    "gate": "Stops here unless the candidate is better or not worse.",
    "build_bento": "Builds the version's self-contained bento.",
    "deploy": "Blue-green behind the gateway; what served before serves until the new one is proved.",
}


def build(recipe: Recipe) -> DAG:
    """The DAG of one recipe."""
    # No time at all, since False would still run a week's schedule that passed within its last tenth, 17 hours.
    weekly = CronTriggerTimetable(recipe.schedule.train_cron, timezone="UTC", run_immediately=timedelta(0))
    fields = {path: Param(**field) for path, field in form_fields(recipe).items()}
    as_of = Param(None, type=["null", "string"], format="date", description="Only intervals up to this day.")
    with DAG(
        dag_id=dag_id("train_classifier", recipe.name),
        schedule=AssetOrTimeSchedule(timetable=weekly, assets=[snapshot_asset(recipe.name)]),
        # No start date: the first weekly run is the next one, not the one that passed before Airflow started.
        catchup=False,
        max_active_runs=1,
        tags=["darkroom", "train", recipe.name],
        description=f"Train, measure, register and deploy the classifier {recipe.name}",
        doc_md=DOC.format(name=recipe.name, quiet=recipe.schedule.cool_down_s),
        params={"as_of": as_of, **fields},
        user_defined_macros={"changes": changes},
    ) as dag:
        first = ("--recipe", recipe.name, "--set", "{{ changes(dag_run.conf) }}", "--as-of", "{{ params.as_of or '' }}")
        chain(
            *(
                step(
                    name,
                    arguments=first if name == "settle" else (),
                    pool="gpu" if name == "train" else "default_pool",
                    doc=doc,
                )
                for name, doc in STEPS.items()
            )
        )
    return dag


for _recipe in recipes()[0]:
    globals()[f"dag_{_recipe.name}"] = build(_recipe)
