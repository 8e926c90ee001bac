"""Great Expectations behind its door."""

from __future__ import annotations

import subprocess
import sys

import pyarrow as pa
import pytest

from pipelines.adapters.expectations import GreatExpectations
from pipelines.core.checks import Check, Suite
from pipelines.core.errors import DarkroomError

TABLE = pa.table(
    {
        "label": ["cat", "dog", "cow", "cat"],
        "side_px": [2, 30, 40, 3],
        "subject": ["a", "b", "c", "d"],
        "examples": ["a.png", "b.png\nb2.png", "c.png", "d.png"],
    }
)


def suite(**changes: object) -> Suite:
    options: dict[str, object] = {
        "kind": "expect_column_values_to_be_between",
        "title": "No image is too small",
        "threshold": "at least 4 px",
        "arguments": {"column": "side_px", "min_value": 4},
        **changes,
    }
    return Suite(name="images", title="Images", table=TABLE, checks=(Check(**options),))


def test_a_failed_check_names_rows_values_and_files() -> None:
    (outcome,) = GreatExpectations().check([suite()]).outcomes
    assert not outcome.met
    assert outcome.observed == "2 of 4: a 2, d 3"
    assert outcome.examples == ("a.png", "d.png")


def test_outcomes_keep_the_order_of_suites_and_checks() -> None:
    known = suite(kind="expect_column_values_to_be_in_set", arguments={"column": "label", "value_set": ("cat", "dog")})
    passed = suite(arguments={"column": "side_px", "min_value": 1}, observed="smallest 2 px")
    unique = suite(kind="expect_column_values_to_be_unique", arguments={"column": "label"}, blocking=False)
    mixed = Suite(name="both", title="Both", table=TABLE, checks=(*unique.checks, *passed.checks))
    report = GreatExpectations().check([known, mixed])
    assert [(one.suite, one.met) for one in report.outcomes] == [("images", False), ("both", False), ("both", True)]
    assert [one.check.title for one in report.unmet(blocking=False)] == ["No image is too small"]
    assert report.outcomes[0].observed == "1 of 4: c cow"
    assert report.outcomes[2].observed == "smallest 2 px"
    assert report.engine.startswith("Great Expectations 1.")
    assert len(report.raw) == 2


def test_a_check_that_cannot_be_computed_is_no_verdict_on_the_data() -> None:
    with pytest.raises(DarkroomError, match="images, No image is too small: the expectation could not be computed"):
        GreatExpectations().check([suite(arguments={"column": "nowhere", "min_value": 4})])


def test_scipy_works_after_the_import_was_made_lighter() -> None:
    program = (
        "from pipelines.adapters.expectations import _import_gx; _import_gx()\n"
        "import scipy.stats; print(scipy.stats.norm.cdf(0))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "0.5"
