"""Great Expectations: runs suites over tables in memory. The only importer of `great_expectations`."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipelines.core.checks import EXAMPLES, MAX_EXAMPLES, SUBJECT, Check, Outcome, Report, Suite
from pipelines.core.errors import DarkroomError

if TYPE_CHECKING:
    import pandas as pd


class GreatExpectations:
    """Checks suites in an ephemeral context: nothing is kept, nothing is sent."""

    def check(self, suites: Sequence[Suite]) -> Report:
        """Outcomes in the order of suites and checks. Raises DarkroomError where one could not be computed."""
        gx = _import_gx()
        from great_expectations.data_context.types.base import ProgressBarsConfig

        context = gx.get_context(mode="ephemeral")
        context.variables.progress_bars = ProgressBarsConfig(globally=False)
        source = context.data_sources.add_pandas("interval")
        outcomes: list[Outcome] = []
        raw: list[Mapping[str, object]] = []
        for suite in suites:
            result = _validate(gx, source, suite)
            raw.append(result.to_json_dict())
            by_place = {one.expectation_config.meta["place"]: one for one in result.results}
            outcomes += [_outcome(suite, check, by_place[place]) for place, check in enumerate(suite.checks)]
        return Report(outcomes=tuple(outcomes), engine=f"Great Expectations {gx.__version__}", raw=raw)


def _validate(gx: Any, source: Any, suite: Suite) -> Any:
    frame = _frame(suite)
    batch = source.add_dataframe_asset(suite.name).add_batch_definition_whole_dataframe("all")
    expectations = [_expectation(gx, check, place) for place, check in enumerate(suite.checks)]
    return batch.get_batch({"dataframe": frame}).validate(
        gx.ExpectationSuite(name=suite.name, expectations=expectations),
        result_format={
            "result_format": "SUMMARY",
            "partial_unexpected_count": MAX_EXAMPLES,
            "unexpected_index_column_names": [name for name in (SUBJECT, EXAMPLES) if name in frame.columns],
        },
    )


def _frame(suite: Suite) -> pd.DataFrame:
    """The table in pandas; texts that repeat (labels, formats) as categories, since a million rows must fit."""
    repeating = [
        field.name
        for field in suite.table.schema
        if field.name in ("label", "split", "format", "mode") and suite.table.num_rows
    ]
    return suite.table.to_pandas(categories=repeating)


def _expectation(gx: Any, check: Check, place: int) -> Any:
    name = "".join(word.capitalize() for word in check.kind.split("_"))
    arguments = {key: list(value) if isinstance(value, tuple) else value for key, value in check.arguments.items()}
    return getattr(gx.expectations, name)(
        **arguments,
        severity="critical" if check.blocking else "warning",
        meta={"place": place, "title": check.title, "threshold": check.threshold},
    )


def _outcome(suite: Suite, check: Check, result: Any) -> Outcome:
    if not result.success and not result.result:
        details = "; ".join(str(one.get("exception_message", one)) for one in _errors(result.exception_info))
        raise DarkroomError(f"{suite.name}, {check.title}: the expectation could not be computed: {details[:500]}")
    found: Mapping[str, Any] = result.result
    return Outcome(
        suite=suite.name,
        check=check,
        met=bool(result.success),
        observed=_observed(check, result.success, found),
        examples=() if result.success else _examples(found),
    )


def _errors(info: Any) -> list[Mapping[str, Any]]:
    return [one for one in info.values() if isinstance(one, Mapping)] if isinstance(info, Mapping) else []


def _observed(check: Check, met: bool, found: Mapping[str, Any]) -> str:
    """A result in words: the check's own, and `3 of 120: cat 1, dog 0` where rows fail."""
    if "unexpected_count" not in found:
        return check.observed or _plain(found.get("observed_value"))
    bad, total = found["unexpected_count"], found["element_count"]
    if met or total == 1:
        return check.observed or (f"all {total:,}" if total else "nothing to check")
    indices = found.get("partial_unexpected_index_list") or []
    values = found.get("partial_unexpected_list") or []
    subjects = [index.get(SUBJECT) for index in indices] or [None] * len(values)
    named = [
        f"{subject} {_plain(value)}" if subject is not None else _plain(value)
        for subject, value in zip(subjects, values, strict=False)
    ]
    shown = ", ".join(dict.fromkeys(named)) + (", …" if bad > len(named) else "")
    return f"{check.observed + '; ' if check.observed else ''}{bad:,} of {total:,}: {shown}"


def _plain(value: Any) -> str:
    if isinstance(value, list | tuple):
        return " ≠ ".join(_plain(one) for one in value)
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _examples(found: Mapping[str, Any]) -> tuple[str, ...]:
    names: dict[str, None] = {}
    for index in found.get("partial_unexpected_index_list") or []:
        for name in str(index.get(EXAMPLES) or "").splitlines():
            names[name] = None
    return tuple(names)[:MAX_EXAMPLES]


def _import_gx() -> Any:
    """Import it without telemetry, and with scipy.stats (1 s, used by no expectation here) only when it is touched."""
    os.environ["GX_ANALYTICS_ENABLED"] = "False"
    if "great_expectations" not in sys.modules and "scipy.stats" not in sys.modules:
        import scipy

        spec = importlib.util.find_spec("scipy.stats")
        assert spec is not None
        assert spec.loader is not None
        spec.loader = importlib.util.LazyLoader(spec.loader)
        module = importlib.util.module_from_spec(spec)
        sys.modules["scipy.stats"] = module
        scipy.stats = module
        spec.loader.exec_module(module)
    import great_expectations
    import great_expectations.expectations

    return great_expectations
