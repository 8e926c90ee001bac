"""The chains of steps, as their DAGs draw them, and their DAG ids."""

from __future__ import annotations

from pipelines.cli.registry import StepSpec
from pipelines.core.storage import Storage
from pipelines.settings import Settings

INGEST = ("plan", "ingest", "assemble", "validate", "materialize", "accept")
TRAIN = (
    "settle",
    "snapshot",
    "training_set",
    "prepare",
    "train",
    "export",
    "evaluate",
    "compare",
    "register",
    "gate",
    "build_bento",
    "deploy",
)

IMPORT = (
    "plan",
    "ingest",
    "assemble",
    "snapshot",
    "export",
    "evaluate",
    "compare",
    "register",
    "gate",
    "build_bento",
    "deploy",
)
"""No DAG of Airflow's draws this one: `darkroom import-model` runs it."""


def specs(steps: tuple[str, ...]) -> list[StepSpec]:
    """The steps' specifications, in order."""
    from pipelines.cli.wiring import STEPS

    return [STEPS[name] for name in steps]


def ingest_dag(settings: Settings, recipe_name: str) -> str:
    return _dag("ingest_images", settings, recipe_name)


def import_dag(recipe_name: str) -> str:
    """No DAG of Airflow's: a person starts an import, and its run folders are like those of the others."""
    from pipelines.cli.wiring import IMPORT_DAG

    return f"{IMPORT_DAG}{recipe_name}"


def imported(storage: Storage) -> list[str]:
    """Names of the models that imports were made of; they need no recipe."""
    from pipelines.cli.wiring import IMPORT_DAG

    folders = storage.folders("runs/")[0]
    return [name.removeprefix(IMPORT_DAG) for name in folders if name.startswith(IMPORT_DAG)]


def train_dag(settings: Settings, recipe_name: str) -> str:
    return _dag("train_classifier", settings, recipe_name)


def _dag(kind: str, settings: Settings, recipe_name: str) -> str:
    return kind if recipe_name == settings.default_model else f"{kind}__{recipe_name}"
