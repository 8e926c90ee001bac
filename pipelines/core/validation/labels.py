"""What should not occur: contradicting labels, and one picture in two of the source's splits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.core.checks import EXAMPLES, MAX_EXAMPLES, SUBJECT, Check, Suite
from pipelines.core.validation.candidate import lines

CONFLICT_REASON = "conflicting_labels"
"""Quarantine's code for one image in two classes."""


@dataclass(frozen=True, kw_only=True)
class Crossing:
    """A pair of equal or nearly equal images in two of the source's splits."""

    splits: tuple[str, str]
    examples: tuple[str, str]
    """Source URIs."""


@dataclass(frozen=True, kw_only=True)
class Count:
    """Something that should not occur."""

    subject: str
    title: str
    threshold: str
    number: int
    observed: str
    examples: pa.ChunkedArray


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


def count_suite(name: str, title: str, counted: Sequence[Count], *, blocking: bool) -> Suite:
    """One row for each thing that should not occur."""
    table = pa.table(
        {
            SUBJECT: [one.subject for one in counted],
            "number": [one.number for one in counted],
            EXAMPLES: [lines(one.examples) for one in counted],
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


def _plain_counts(values: Sequence[str]) -> str:
    return ", ".join(f"{value} {number:,}" for value, number in sorted(Counter(values).items()))
