"""Filters of recipes and names in the feature store."""

from __future__ import annotations

import numpy as np
import pytest

from pipelines.core.errors import RecipeError
from pipelines.core.features import conditions, project_of


def test_a_filter_holds_for_its_numbers_and_never_for_a_missing_one() -> None:
    (condition,) = conditions(["sharpness >= 1e-2"])
    assert condition.holds(np.array([0.02, 0.01, 0.0, np.nan])).tolist() == [True, True, False, False]
    (unequal,) = conditions(["entropy!=3"])
    assert unequal.holds(np.array([3.0, 4.0, np.nan])).tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("sharpness", "expected '<feature> <operator> <number>'"),
        ("sharpness > 1 or 1", "expected"),
        ("blur > 1", "no feature 'blur'; there are brightness"),
        ("sharpness > __import__('os')", "is no number"),
        ("sharpness > nan", "is no number"),
        ("sharpness => 1", "expected"),
    ],
)
def test_a_wrong_filter_names_the_key_and_what_is_allowed(text: str, says: str) -> None:
    with pytest.raises(RecipeError, match=r"features\.where") as caught:
        conditions([text])
    assert says in str(caught.value)


def test_every_recipe_has_a_project_of_its_own_that_postgres_does_not_cut() -> None:
    names = ["digits", "a-b", "a" * 23, "a" * 24, "a" * 40, "a" * 39 + "b", "my-very-long-dataset-name-number-1"]
    projects = [project_of(name) for name in names]
    assert len(set(projects)) == len(names)
    assert all(len(project) <= 23 and project.replace("_", "").isalnum() for project in projects)
