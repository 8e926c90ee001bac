"""All steps, by name, in the order of their DAGs. Each module here wires one group of steps to its adapters."""

from __future__ import annotations

from pipelines.cli.registry import StepSpec
from pipelines.cli.wiring import data, evaluation, features, models, serving

STEPS: dict[str, StepSpec] = {
    spec.name: spec for spec in (*data.SPECS, *features.SPECS, *models.SPECS, *evaluation.SPECS, *serving.SPECS)
}
