"""What is expected of image statistics, against those of the accepted set."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.core.checks import EXAMPLES, MAX_EXAMPLES, SUBJECT, Check, Suite
from pipelines.core.features import STATISTICS
from pipelines.core.validation.candidate import Moments


def statistics_suite(
    statistics: pa.Table, moments: Moments, head: Moments, uris: Callable[[Sequence[str]], list[str]], limit: float
) -> Suite:
    """Image statistics of the interval against those of the accepted head. `uris` gives the sources of image ids."""
    rows = [_statistic(name, statistics, moments, head, uris, limit) for name in STATISTICS]
    table = pa.table(
        {
            SUBJECT: pa.array(list(STATISTICS), pa.string()),
            "num_missing": pa.array([row.num_missing for row in rows], pa.int64()),
            "shift": pa.array([row.shift for row in rows], pa.float64()),
            EXAMPLES: pa.array([row.examples for row in rows], pa.string()),
        }
    )
    shifts = [row.shift for row in rows if row.shift is not None]
    return Suite(
        name="statistics",
        title="Image statistics",
        table=table,
        checks=(
            Check(
                kind="expect_column_values_to_be_between",
                title="Every image has every statistic",
                threshold="no missing or infinite value",
                arguments={"column": "num_missing", "max_value": 0},
            ),
            Check(
                kind="expect_column_values_to_be_between",
                title="Statistics are those of the accepted set",
                threshold=f"a mean moves by at most {limit:g} standard deviations (validation.max_statistics_shift)",
                arguments={"column": "shift", "max_value": limit},
                blocking=False,
                observed=f"largest move {max(shifts):.2f}" if shifts else "nothing accepted yet",
            ),
        ),
    )


@dataclass(frozen=True, kw_only=True)
class _Statistic:
    num_missing: int
    shift: float | None
    """Distance of the means in the head's standard deviations; None without a head or an interval."""
    examples: str


def _statistic(
    name: str,
    statistics: pa.Table,
    moments: Moments,
    head: Moments,
    uris: Callable[[Sequence[str]], list[str]],
    limit: float,
) -> _Statistic:
    column = statistics[name]
    missing = pc.invert(pc.fill_null(pc.is_finite(column), fill_value=False))
    num_missing = pc.sum(missing.cast(pa.int64())).as_py() or 0
    shift, examples = None, ""
    if head.num_images and moments.num_images:
        move = moments.mean[name] - head.mean[name]
        spread = head.deviation[name]
        shift = abs(move) / spread if spread else (0.0 if abs(move) < 1e-6 else float("inf"))
        if shift > limit:
            order = "descending" if move > 0 else "ascending"
            picked = pc.select_k_unstable(statistics, MAX_EXAMPLES, sort_keys=[(name, order)])
            examples = "\n".join(uris(statistics["image_id"].take(picked).to_pylist()))
    if num_missing:
        examples = "\n".join(uris(statistics["image_id"].filter(missing)[:MAX_EXAMPLES].to_pylist()))
    return _Statistic(num_missing=num_missing, shift=shift, examples=examples)
