"""Recipes: what a run does, as frozen dataclasses that check themselves.

Only the standard library is imported: Airflow's DAG files and bare GPU machines read recipes too. Every option is
declared once, by `option()` in `sections`, and that one declaration gives the default, the check, the documentation and
the field of Airflow's trigger form.
"""

from pipelines.core.recipe.files import find, get, load, registered, template
from pipelines.core.recipe.recipe import NAME_PATTERN, Recipe, digest_of
from pipelines.core.recipe.sections import (
    TORCHVISION,
    Augmentation,
    Evaluation,
    Export,
    Features,
    Gate,
    Loading,
    Model,
    Preprocessing,
    Rollout,
    Schedule,
    Source,
    Split,
    Training,
    Validation,
)
from pipelines.core.recipe.tables import changes, form_fields, from_dict, override, to_dict

__all__ = [
    "NAME_PATTERN",
    "TORCHVISION",
    "Augmentation",
    "Evaluation",
    "Export",
    "Features",
    "Gate",
    "Loading",
    "Model",
    "Preprocessing",
    "Recipe",
    "Rollout",
    "Schedule",
    "Source",
    "Split",
    "Training",
    "Validation",
    "changes",
    "digest_of",
    "find",
    "form_fields",
    "from_dict",
    "get",
    "load",
    "override",
    "registered",
    "template",
    "to_dict",
]
