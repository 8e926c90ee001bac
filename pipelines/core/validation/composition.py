"""What is expected of the classes of the accepted set with a new interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.core.checks import EXAMPLES, SUBJECT, Check, Suite
from pipelines.core.recipe import Validation
from pipelines.core.validation.candidate import lines, of_class


def composition_suite(
    counts: Mapping[str, int], head_counts: Mapping[str, int], live: pa.Table, validation: Validation
) -> Suite:
    """Classes of the set that the head would make with this interval. `live`: the interval's images, for examples."""
    known = sorted({*counts, *head_counts, *validation.known_labels})
    numbers = [counts.get(label, 0) for label in known]
    smallest, largest = min(numbers, default=0), max(numbers, default=0)
    ratio = largest / smallest if smallest else float("inf")
    shifts = _share_shifts(known, live, head_counts)
    table = pa.table(
        {
            SUBJECT: pa.array(known, pa.string()),
            "num_images": pa.array(numbers, pa.int64()),
            "ratio": pa.array([largest / number if number else float("inf") for number in numbers], pa.float64()),
            "share_shift": pa.array(shifts, pa.float64()),
            EXAMPLES: pa.array([lines(of_class(live, label)) for label in known], pa.string()),
        }
    )
    return Suite(
        name="composition",
        title="Classes of the accepted set with this interval",
        table=table,
        checks=(
            Check(
                kind="expect_table_row_count_to_be_between",
                title="There are images of at least one class",
                threshold="at least 1 class",
                arguments={"min_value": 1},
            ),
            Check(
                kind="expect_column_values_to_be_between",
                title="Every class has enough images",
                threshold=f"at least {validation.min_images_per_class} (validation.min_images_per_class)",
                arguments={"column": "num_images", "min_value": validation.min_images_per_class},
                observed=f"smallest class {smallest:,}, largest {largest:,}",
            ),
            Check(
                kind="expect_column_values_to_be_between",
                title="Classes are balanced",
                threshold=f"largest class at most {validation.max_class_ratio:g} times the smallest "
                "(validation.max_class_ratio)",
                arguments={"column": "ratio", "max_value": validation.max_class_ratio},
                blocking=False,
                observed=f"{ratio:.3g} times",
            ),
            Check(
                kind="expect_column_values_to_be_between",
                title="The interval's classes are as frequent as those of the accepted set",
                threshold=f"a class's share moves by at most {validation.max_class_share_shift:g} "
                "(validation.max_class_share_shift)",
                arguments={"column": "share_shift", "max_value": validation.max_class_share_shift},
                blocking=False,
                observed=f"largest move {max((s for s in shifts if s is not None), default=0):.2f}"
                if head_counts
                else "nothing accepted yet",
            ),
        ),
    )


def _share_shifts(known: Sequence[str], live: pa.Table, head_counts: Mapping[str, int]) -> list[float | None]:
    """How far each class's share in the interval is from its share in the head (None without a head)."""
    counted = pc.value_counts(live["label"]).to_pylist()
    own = {entry["values"]: entry["counts"] for entry in counted}
    total, before = max(live.num_rows, 1), sum(head_counts.values())
    shares = [own.get(label, 0) / total for label in known]
    if not before or not live.num_rows:
        return [None] * len(known)
    return [abs(share - head_counts.get(label, 0) / before) for label, share in zip(known, shares, strict=True)]
