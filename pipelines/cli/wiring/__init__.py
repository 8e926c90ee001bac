"""All steps, by name, in the order of their DAGs. Each module here wires one group of steps to its adapters."""

from __future__ import annotations

from pipelines.cli.registry import StepSpec
from pipelines.cli.wiring import data, evaluation, features, foreign, models, serving

STEPS: dict[str, StepSpec] = {
    spec.name: spec for spec in (*data.SPECS, *features.SPECS, *models.SPECS, *evaluation.SPECS, *serving.SPECS)
}
IMPORT_STEPS: dict[str, StepSpec] = {spec.name: spec for spec in foreign.SPECS}
"""Those of an import, which has other ones in the places of training."""
IMPORT_DAG = "import_model__"
"""How the ids of an import's runs begin, before the model's name."""


def steps_of(dag_id: str) -> dict[str, StepSpec]:
    """The steps that a run of this DAG has, by name."""
    return IMPORT_STEPS if dag_id.startswith(IMPORT_DAG) else STEPS
