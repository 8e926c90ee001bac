"""Snapshots and splits are functions of the set of images, and keep near-duplicates on one side."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.core import manifest
from pipelines.core.errors import UserError
from pipelines.core.recipe import Split
from pipelines.core.snapshot import compose, merge

DAY = datetime(2024, 1, 1, tzinfo=UTC)
THIRDS = Split(val_share=0.3, test_share=0.3)


def image_id(name: object) -> str:
    return hashlib.sha256(str(name).encode()).hexdigest()


def row(name: object, label: str | None, day: int = 0, **columns: Any) -> dict[str, Any]:
    """A manifest row; its perceptual hash is far from every other name's."""
    known = {
        "image_id": image_id(name),
        "label": label,
        "width": 8,
        "height": 8,
        "format": "PNG",
        "mode": "RGB",
        "size_bytes": 99,
        "phash": int.from_bytes(hashlib.sha256(f"phash {name}".encode()).digest()[:8]),
        "event_timestamp": DAY + timedelta(days=day),
        "source_uri": f"/in/{name}",
    }
    return {**dict.fromkeys(manifest.MANIFEST.names), **known, **columns}


def table(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(list(rows), schema=manifest.MANIFEST).sort_by("image_id")


def images(start: int, stop: int, day: int = 0, **columns: Any) -> list[dict[str, Any]]:
    return [row(i, "cat" if i % 2 else "dog", day, **columns) for i in range(start, stop)]


def splits_of(composed: pa.Table) -> dict[str, str]:
    return dict(zip(composed["image_id"].to_pylist(), composed["split"].to_pylist(), strict=True))


PARTS = {
    "2024-01-01": table(images(0, 40)),
    "2024-01-02": table([*images(30, 70, 1), row(3, "dog", 1), row(5, None, 1)]),
    "2024-01-03": table([*images(60, 90, 2), row(3, "cat", 2), row(7, None, 2)]),
}


def test_every_permutation_of_intervals_is_one_snapshot() -> None:
    made = [compose(dict(order), THIRDS) for order in itertools.permutations(PARTS.items())]
    assert len({one.snapshot_id for one in made}) == 1
    assert all(one.table.equals(made[0].table) for one in made)


def test_the_id_is_the_content() -> None:
    before = compose(PARTS, THIRDS).snapshot_id
    assert compose(PARTS, replace(THIRDS, salt="other")).snapshot_id != before
    assert compose({**PARTS, "2024-01-03": PARTS["2024-01-03"][1:]}, THIRDS).snapshot_id != before


def test_newest_label_wins_and_tombstones_remove() -> None:
    merged = merge(PARTS)
    labels = dict(zip(merged["image_id"].to_pylist(), merged["label"].to_pylist(), strict=True))
    assert labels[image_id(3)] == "cat"
    assert image_id(5) not in labels
    assert image_id(7) not in labels
    assert len(labels) == 88
    without_last = merge({day: part for day, part in PARTS.items() if day < "2024-01-03"})
    labels = dict(zip(without_last["image_id"].to_pylist(), without_last["label"].to_pylist(), strict=True))
    assert labels[image_id(3)] == "dog"
    assert image_id(7) in labels


def test_a_tombstone_older_than_the_label_removes_nothing() -> None:
    parts = {"2024-01-01": table([row(1, None)]), "2024-01-02": table([row(1, "cat", 1)])}
    assert merge(parts).num_rows == 1


def test_event_time_counts_before_the_interval() -> None:
    parts = {"2024-01-01": table([row(1, "new", 5)]), "2024-01-02": table([row(1, "old", 1)])}
    assert merge(parts)["label"].to_pylist() == ["new"]


def test_a_tombstone_may_know_only_the_uri() -> None:
    gone = {**row("gone", None, 1), "image_id": manifest.uri_id("/in/1"), "source_uri": "/in/1"}
    parts = {"2024-01-01": table([row(1, "cat"), row(2, "dog")]), "2024-01-02": table([gone])}
    assert merge(parts)["image_id"].to_pylist() == [image_id(2)]
    back = {**parts, "2024-01-03": table([row(1, "cat", 2)])}
    assert merge(back).num_rows == 2


def near(name: object, of: object, bits: int, **columns: Any) -> dict[str, Any]:
    """A row whose hash differs from another's in so many bits."""
    return row(name, "cat", phash=row(of, "cat")["phash"] ^ ((1 << bits) - 1), **columns)


def crossing(composed: pa.Table, distance: int = 4) -> list[tuple[str, str]]:
    rows = [one for one in composed.to_pylist() if one["split"] != manifest.EXCLUDED]
    return [
        (left["split"], right["split"])
        for left, right in itertools.combinations(rows, 2)
        if (left["phash"] ^ right["phash"]).bit_count() <= distance and left["split"] != right["split"]
    ]


@settings(max_examples=30, deadline=None)
@given(st.randoms(use_true_random=False))
def test_no_near_duplicate_pair_crosses_splits(random: Any) -> None:
    rows = images(0, 120)
    for i in range(60):
        other = random.choice(rows)
        flips = sum(1 << random.randrange(64) for _ in range(random.randrange(6)))
        rows.append(row(f"near {i}", other["label"], random.randrange(3), phash=(other["phash"] ^ flips) % 2**64))
    composed = compose({"static": table(rows)}, replace(THIRDS, max_group_share=1.0))
    assert crossing(composed.table) == []
    assert composed.table.num_rows == 180


def test_an_image_between_two_splits_is_excluded_with_the_reason() -> None:
    rows = images(0, 60)
    splits = splits_of(compose({"static": table(rows)}, THIRDS).table)
    phash = row(0, "")["phash"]
    other = next(one for one in rows if splits[one["image_id"]] != splits[image_id(0)])
    moved = {**other, "phash": phash ^ 0b11111111}
    between = row("between", "cat", 1, phash=phash ^ 0b1111)
    composed = compose({"static": table([*(one for one in rows if one is not other), moved, between])}, THIRDS)
    (excluded,) = [one for one in composed.table.to_pylist() if one["split"] == manifest.EXCLUDED]
    assert excluded["image_id"] == image_id("between")
    assert excluded["excluded_reason"].startswith("near-duplicates of it are in ")
    assert composed.split_counts["excluded"] == 1
    assert any("1 images excluded" in warning for warning in composed.warnings)
    assert crossing(composed.table) == []


@settings(max_examples=25, deadline=None)
@given(st.randoms(use_true_random=False))
def test_splits_stay_when_newer_data_arrives(random: Any) -> None:
    rows = images(0, 100)
    later = [
        row(
            f"near {i}", "cat", random.randrange(1, 4), phash=random.choice(rows)["phash"] ^ (1 << random.randrange(64))
        )
        for i in range(30)
    ]
    again = [{**one, "event_timestamp": DAY + timedelta(days=2)} for one in random.sample(rows, 10)]
    before = splits_of(compose({"a": table(rows)}, THIRDS).table)
    after = splits_of(compose({"a": table(rows), "b": table([*later, *again])}, THIRDS).table)
    assert {image: after[image] for image in before} == before


def test_shares_and_salt() -> None:
    parts = {"static": table(images(0, 3000))}
    counts = compose(parts, Split()).split_counts
    assert abs(counts["val"] / 3000 - 0.15) < 0.03
    assert abs(counts["test"] / 3000 - 0.15) < 0.03
    assert splits_of(compose(parts, Split()).table) != splits_of(compose(parts, Split(salt="x")).table)


def test_groups_are_named_by_their_first_image() -> None:
    rows = [*images(0, 60), near("late", 1, 2, event_timestamp=DAY + timedelta(days=1))]
    composed = compose({"static": table(rows)}, THIRDS)
    groups = dict(zip(composed.table["image_id"].to_pylist(), composed.table["group_id"].to_pylist(), strict=True))
    assert groups[image_id("late")] == image_id(1)
    assert groups[image_id(2)] == image_id(2)
    splits = splits_of(composed.table)
    assert splits[image_id("late")] == splits[image_id(1)]


def test_a_hash_that_does_not_fit_the_data_is_not_used() -> None:
    rows = [*images(0, 60), *(near(f"n{i}", 1, i % 4) for i in range(40))]
    composed = compose({"static": table(rows)}, THIRDS)
    assert any("perceptual hash does not fit" in warning for warning in composed.warnings)
    assert len(set(composed.table["group_id"].to_pylist())) == 100
    assert composed.split_counts["excluded"] == 0


def test_the_sources_splits_are_kept() -> None:
    rows = [*images(0, 40, split="train"), *images(40, 50, split="val"), *images(50, 60, split="test")]
    rows.append(near("leak", 41, 1, split="train"))
    composed = compose({"static": table(rows)}, THIRDS)
    assert composed.split_counts == {"train": 41, "val": 10, "test": 10, "excluded": 0}
    assert composed.table["source_split"].to_pylist() == composed.table["split"].to_pylist()


@pytest.mark.parametrize(("brought", "carved"), [("val", "test"), ("test", "val")])
def test_a_missing_split_is_carved_from_train(brought: str, carved: str) -> None:
    rows = [*images(0, 400, split="train"), *images(400, 420, split=brought)]
    composed = compose({"static": table(rows)}, Split())
    assert composed.split_counts[brought] == 20
    assert 0.08 < composed.split_counts[carved] / 400 < 0.22
    assert crossing(composed.table) == []


def test_unsplit_images_beside_split_ones_follow_their_near_duplicates() -> None:
    rows = [*images(0, 40, split="train"), *images(40, 50, split="val"), *images(50, 60, split="test")]
    newer = [near("a", 41, 1), near("b", 51, 1), near("c", 1, 1)]
    splits = splits_of(compose({"a": table(rows), "b": table(newer)}, THIRDS).table)
    assert [splits[image_id(name)] for name in "abc"] == ["val", "test", "train"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "0 images of no class"),
        ([row(1, "cat"), row(2, "cat")], "2 images of cat: a classifier needs two classes"),
        (images(0, 3), "falls into the"),
        ([*images(0, 30, split="train"), row(99, "bird", split="test"), row(98, "cat", split="val")], "class bird"),
    ],
)
def test_sets_that_cannot_train(rows: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(UserError, match=message):
        compose({"static": table(rows)}, THIRDS)


def test_a_class_that_is_never_tested_is_warned_of() -> None:
    rows = [*images(0, 30, split="train"), row(90, "cat", split="val"), row(91, "cat", split="test")]
    warnings = "\n".join(compose({"static": table(rows)}, THIRDS).warnings)
    assert "class dog: no image in the test split" in warnings


def test_rows_digest_ignores_how_a_table_is_cut() -> None:
    whole = PARTS["2024-01-01"]
    pieces = pa.concat_tables([whole[:7], whole[7:7], whole[7:]])
    assert manifest.rows_digest(whole) == manifest.rows_digest(pieces)
    assert manifest.rows_digest(whole) != manifest.rows_digest(whole[1:])
    nulls = whole.set_column(2, manifest.MANIFEST.field("split"), pa.array([""] * whole.num_rows))
    assert manifest.rows_digest(whole) != manifest.rows_digest(nulls)


def test_random_hashes_of_many_images_are_quick() -> None:
    """20,000 images; a search by pairs would be 200 million comparisons."""
    rng = np.random.default_rng(0)
    rows = images(0, 200)
    big = pa.concat_tables([table(rows)] * 100)
    ids = pa.array([image_id(i) for i in range(big.num_rows)])
    hashes = pa.array(rng.integers(0, 2**64, big.num_rows, dtype=np.uint64))
    big = big.set_column(0, manifest.MANIFEST.field("image_id"), ids)
    big = big.set_column(8, manifest.MANIFEST.field("phash"), hashes)
    assert compose({"static": big}, Split()).table.num_rows == 20_000
