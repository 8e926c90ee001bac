"""What is expected of an interval, of the set it would make with the accepted head, and of its statistics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.core import manifest
from pipelines.core.checks import EXAMPLES, MAX_EXAMPLES, SUBJECT, Check, Suite
from pipelines.core.features import STATISTICS
from pipelines.core.preprocessing import FORMATS
from pipelines.core.recipe import Validation

CONFLICT_REASON = "conflicting_labels"
"""Quarantine's code for one image in two classes."""


@dataclass(frozen=True, kw_only=True)
class Moments:
    """Count, mean and standard deviation of each statistic."""

    num_images: int
    mean: Mapping[str, float]
    deviation: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Crossing:
    """A pair of equal or nearly equal images in two of the source's splits."""

    splits: tuple[str, str]
    examples: tuple[str, str]
    """Source URIs."""


def schema_suite(tables: Mapping[str, tuple[pa.Schema, pa.Schema]]) -> Suite:
    """`tables`: (found, expected) schema of each table by name."""
    subjects, found_types, expected_types = [], [], []
    for name, (found, expected) in tables.items():
        for column in dict.fromkeys([*expected.names, *found.names]):
            subjects.append(f"{name}.{column}")
            found_types.append(str(found.field(column).type) if column in found.names else "missing")
            expected_types.append(str(expected.field(column).type) if column in expected.names else "not expected")
    return Suite(
        name="schema",
        title="Schema",
        table=pa.table({SUBJECT: subjects, "found": found_types, "expected": expected_types}),
        checks=(
            Check(
                kind="expect_column_pair_values_to_be_equal",
                title="Columns and their types are those of the manifest, statistics and quarantine",
                threshold="the schema of core.manifest",
                arguments={"column_A": "found", "column_B": "expected"},
                observed=f"{len(subjects)} columns as expected",
            ),
        ),
    )


def manifest_suite(live: pa.Table, validation: Validation) -> Suite:
    """Row by row. `live`: the interval's manifest without tombstones."""
    table = pa.table(
        {
            "image_id": live.column("image_id"),
            "label": live.column("label"),
            "split": live.column("split"),
            "format": live.column("format"),
            "short_side_px": pc.min_element_wise(live.column("width"), live.column("height")),
            "size_bytes": live.column("size_bytes"),
            EXAMPLES: live.column("source_uri"),
        }
    )
    shortest = pc.min(table.column("short_side_px")).as_py()
    checks = [
        Check(
            kind="expect_column_values_to_be_unique",
            title="Every image is in the interval once",
            threshold="no image_id twice",
            arguments={"column": "image_id"},
        ),
        Check(
            kind="expect_column_values_to_match_regex",
            title="Images are named by the SHA-256 of their bytes",
            threshold="64 hexadecimal digits",
            arguments={"column": "image_id", "regex": "^[0-9a-f]{64}$"},
        ),
        Check(
            kind="expect_column_values_to_be_between",
            title="No image is too small",
            threshold=f"shorter side at least {validation.min_side_px} px (validation.min_side_px)",
            arguments={"column": "short_side_px", "min_value": validation.min_side_px},
            observed=f"smallest {shortest} px",
        ),
        Check(
            kind="expect_column_values_to_be_in_set",
            title="Formats are accepted ones",
            threshold=", ".join(FORMATS),
            arguments={"column": "format", "value_set": FORMATS},
        ),
        Check(
            kind="expect_column_values_to_be_between",
            title="Files are not empty",
            threshold="at least 1 byte",
            arguments={"column": "size_bytes", "min_value": 1},
        ),
        Check(
            kind="expect_column_values_to_be_in_set",
            title="The source's own splits have known names",
            threshold=", ".join(manifest.SPLITS),
            arguments={"column": "split", "value_set": manifest.SPLITS},
            observed=_counted(live.column("split"), "the source brings no splits"),
        ),
    ]
    if validation.known_labels:
        checks.append(
            Check(
                kind="expect_column_values_to_be_in_set",
                title="Labels are known",
                threshold=", ".join(validation.known_labels) + " (validation.known_labels)",
                arguments={"column": "label", "value_set": validation.known_labels},
            )
        )
    return Suite(name="manifest", title="Images of the interval", table=table, checks=tuple(checks))


def quarantine_suite(quarantine: pa.Table, num_files: int, validation: Validation) -> Suite:
    """Share of files that were turned away."""
    share = quarantine.num_rows / num_files if num_files else 0.0
    return Suite(
        name="quarantine",
        title="Files that were turned away",
        table=pa.table({SUBJECT: ["quarantine"], "share": [share], EXAMPLES: [_lines(quarantine["source_uri"])]}),
        checks=(
            Check(
                kind="expect_column_values_to_be_between",
                title="Few files are turned away",
                threshold=f"at most {validation.max_quarantine_share:.2%} (validation.max_quarantine_share)",
                arguments={"column": "share", "max_value": validation.max_quarantine_share},
                observed=f"{quarantine.num_rows:,} of {num_files:,} files ({share:.2%})",
            ),
        ),
    )


def labels_suite(
    live: pa.Table, quarantine: pa.Table, head_labels: Mapping[str, str], head_counts: Mapping[str, int]
) -> Suite:
    """Labels that contradict each other, the accepted head, or are new to it.

    `head_labels`: the accepted label of each image of the interval that the head holds too.
    """
    twice = quarantine.filter(pc.equal(quarantine["reason"], CONFLICT_REASON))
    rows = live.select(["image_id", "label", "source_uri"]).filter(
        pc.is_in(live["image_id"], value_set=pa.array(list(head_labels), pa.string()))
    )
    moved = [row for row in rows.to_pylist() if head_labels[row["image_id"]] != row["label"]]
    new = sorted(set(pc.unique(live["label"]).to_pylist()) - set(head_counts)) if head_counts else []
    newcomers = live.filter(pc.is_in(live["label"], value_set=pa.array(new, pa.string())))
    counted = [
        Count(
            subject="images in two classes",
            title="No image is in two classes",
            threshold="none; such images are turned away",
            number=twice.num_rows,
            observed="; ".join(dict.fromkeys(twice["detail"].to_pylist()[:MAX_EXAMPLES])),
            examples=twice["source_uri"],
        ),
        Count(
            subject="changed labels",
            title="No accepted image changed its class",
            threshold="none; the newest label counts",
            number=len(moved),
            observed=", ".join(dict.fromkeys(f"{head_labels[row['image_id']]} → {row['label']}" for row in moved[:20])),
            examples=pa.chunked_array([pa.array([row["source_uri"] for row in moved], pa.string())]),
        ),
        Count(
            subject="new classes",
            title="No class is new to the accepted set",
            threshold="none",
            number=len(new),
            observed=", ".join(new[:20]),
            examples=newcomers["source_uri"],
        ),
    ]
    return count_suite("labels", "Labels", counted, blocking=False)


def duplicates_suite(exact: Sequence[Crossing], near: Sequence[Crossing], searched: str, *, blocking: bool) -> Suite:
    """Equal and nearly equal images in two of the source's own splits. `searched` says how near ones were sought."""
    counted = [
        Count(
            subject=subject,
            title=title,
            threshold="none (validation.block_cross_split_duplicates)",
            number=len(pairs),
            observed=_plain_counts(["/".join(sorted(pair.splits)) for pair in pairs]),
            examples=pa.chunked_array([pa.array([uri for pair in pairs for uri in pair.examples], pa.string())]),
        )
        for subject, title, pairs in (
            ("exact duplicates", "No file is in two of the source's splits", exact),
            ("near-duplicates", f"No near-duplicates cross the source's splits ({searched})", near),
        )
    ]
    return count_suite("duplicates", "Duplicates across the source's splits", counted, blocking=blocking)


@dataclass(frozen=True, kw_only=True)
class Count:
    """Something that should not occur."""

    subject: str
    title: str
    threshold: str
    number: int
    observed: str
    examples: pa.ChunkedArray


def count_suite(name: str, title: str, counted: Sequence[Count], *, blocking: bool) -> Suite:
    """One row for each thing that should not occur."""
    table = pa.table(
        {
            SUBJECT: [one.subject for one in counted],
            "number": [one.number for one in counted],
            EXAMPLES: [_lines(one.examples) for one in counted],
        }
    )
    checks = tuple(
        Check(
            kind="expect_column_values_to_be_between",
            title=one.title,
            threshold=one.threshold,
            arguments={
                "column": "number",
                "max_value": 0,
                "row_condition": f'{SUBJECT} == "{one.subject}"',
                "condition_parser": "pandas",
            },
            blocking=blocking,
            observed=f"{one.number:,}: {one.observed}" if one.number else "none",
        )
        for one in counted
    )
    return Suite(name=name, title=title, table=table, checks=checks)


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
            EXAMPLES: pa.array([_lines(_of_class(live, label)) for label in known], pa.string()),
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


class MomentSums:
    """Moments of statistics that come in parts."""

    def __init__(self) -> None:
        self._num_images = 0
        self._sums = {name: np.zeros(2) for name in STATISTICS}

    def add(self, statistics: pa.Table) -> None:
        self._num_images += statistics.num_rows
        for name, sums in self._sums.items():
            values = statistics[name].to_numpy().astype(np.float64)
            finite = values[np.isfinite(values)]
            sums += finite.sum(), (finite * finite).sum()

    def moments(self) -> Moments:
        count = max(self._num_images, 1)
        mean = {name: float(sums[0] / count) for name, sums in self._sums.items()}
        square = {name: float(sums[1] / count) for name, sums in self._sums.items()}
        deviation = {name: max(square[name] - mean[name] ** 2, 0.0) ** 0.5 for name in STATISTICS}
        return Moments(num_images=self._num_images, mean=mean, deviation=deviation)


def _lines(uris: pa.ChunkedArray) -> str:
    return "\n".join(uris[:MAX_EXAMPLES].to_pylist())


def _of_class(live: pa.Table, label: str) -> pa.ChunkedArray:
    return live["source_uri"].filter(pc.equal(live["label"], label))


def _counted(column: pa.ChunkedArray, otherwise: str) -> str:
    found = {one["values"]: one["counts"] for one in pc.value_counts(column).to_pylist() if one["values"] is not None}
    return ", ".join(f"{value} {number:,}" for value, number in sorted(found.items())) or otherwise


def _plain_counts(values: Sequence[str]) -> str:
    return ", ".join(f"{value} {number:,}" for value, number in sorted(Counter(values).items()))
