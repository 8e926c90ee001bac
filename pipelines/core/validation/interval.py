"""What is expected of an interval by itself: its schema, its images, its quarantine."""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.core import manifest
from pipelines.core.checks import EXAMPLES, SUBJECT, Check, Suite
from pipelines.core.preprocessing import FORMATS
from pipelines.core.recipe import Validation
from pipelines.core.validation.candidate import lines


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
            observed="" if shortest is None else f"smallest {shortest} px",
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
        table=pa.table({SUBJECT: ["quarantine"], "share": [share], EXAMPLES: [lines(quarantine["source_uri"])]}),
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


def _counted(column: pa.ChunkedArray, otherwise: str) -> str:
    found = {one["values"]: one["counts"] for one in pc.value_counts(column).to_pylist() if one["values"] is not None}
    return ", ".join(f"{value} {number:,}" for value, number in sorted(found.items())) or otherwise
