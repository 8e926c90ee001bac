"""`validate`: is this interval fit to be accepted? A blocking finding parks it and ends the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.core import datasets, manifest
from pipelines.core.checks import Expectations, Outcome, Suite
from pipelines.core.errors import GateRejected
from pipelines.core.perceptual import neighbours
from pipelines.core.recipe import Recipe
from pipelines.core.snapshot import merge
from pipelines.core.storage import Storage
from pipelines.core.validation import docs
from pipelines.core.validation.candidate import Candidate, MomentSums, class_counts
from pipelines.core.validation.composition import composition_suite
from pipelines.core.validation.interval import manifest_suite, quarantine_suite, schema_suite
from pipelines.core.validation.labels import Crossing, duplicates_suite, labels_suite
from pipelines.core.validation.statistics import statistics_suite
from pipelines.core.values import Assembled, Finding, Validated

_TABLES = {
    "manifest": manifest.MANIFEST,
    "statistics": manifest.STATISTICS,
    "quarantine": manifest.QUARANTINE,
    "duplicates": manifest.DUPLICATES,
}


def validate(
    *,
    recipe: Recipe,
    run: str,
    assembled: Assembled,
    folder: Path,
    accepted: Mapping[str, str],
    storage: Storage,
    expectations: Expectations,
    out: Path,
    cache: Path,
) -> Validated:
    """Check the interval in `folder` against itself and the accepted head; leave the data docs in `out`/docs.

    `accepted`: digest of each other accepted interval. Raises GateRejected after parking the interval where a blocking
    expectation is not met; the text names expectation, observed value, threshold and example files.
    """
    candidate = _read(recipe, assembled, folder, accepted, storage, cache)
    suites = _suites(candidate)
    report = expectations.check(suites)
    docs.write(candidate, run, suites, report, storage, out / "docs")
    blocking = report.unmet(blocking=True)
    if blocking:
        text = _rejection(recipe.name, assembled.interval, blocking)
        examples = [uri for outcome in blocking for uri in outcome.examples]
        datasets.park(storage, recipe.name, assembled.interval, run=run, reason=text, examples=examples)
        where = storage.locate(f"{docs.prefix_of(recipe.name, run)}/index.html")
        raise GateRejected(f"{text}\ndata docs: {where}")
    return Validated(
        interval=assembled.interval,
        num_expectations=len(report.outcomes),
        findings=tuple(_finding(outcome) for outcome in report.unmet(blocking=False)),
    )


def _read(
    recipe: Recipe, assembled: Assembled, folder: Path, accepted: Mapping[str, str], storage: Storage, cache: Path
) -> Candidate:
    tables = {name: manifest.read(folder / f"{name}.parquet") for name in _TABLES}
    parts: dict[str, pa.Table] = {}
    sums = MomentSums()
    for interval, digest in accepted.items():
        parts[interval] = manifest.read(
            storage.local(datasets.interval_key(recipe.name, interval, digest), cache), manifest.MANIFEST.names
        )
        sums.add(
            manifest.read(storage.local(datasets.interval_key(recipe.name, interval, digest, "statistics"), cache))
        )
    return Candidate(
        recipe=recipe,
        assembled=assembled,
        tables=tables,
        live=tables["manifest"].filter(pc.is_valid(tables["manifest"]["label"])),
        before=merge(parts),
        after=merge({**parts, assembled.interval: tables["manifest"]}),
        head=sums.moments(),
    )


def _suites(candidate: Candidate) -> list[Suite]:
    options, live, tables = candidate.recipe.validation, candidate.live, candidate.tables
    head_counts = class_counts(candidate.before)
    known = candidate.before.filter(pc.is_in(candidate.before["image_id"], value_set=live["image_id"]))
    head_labels = dict(zip(known["image_id"].to_pylist(), known["label"].to_pylist(), strict=True))
    own = MomentSums()
    own.add(tables["statistics"])
    suites = [
        schema_suite({name: (tables[name].schema, schema) for name, schema in _TABLES.items()}),
        manifest_suite(live, options),
        quarantine_suite(tables["quarantine"], candidate.assembled.num_files, options),
        labels_suite(live, tables["quarantine"], head_labels, head_counts),
        statistics_suite(
            tables["statistics"], own.moments(), candidate.head, partial(_uris, live), options.max_statistics_shift
        ),
    ]
    if candidate.assembled.num_files:  # a day without images adds nothing that could be blamed on it
        suites.append(composition_suite(class_counts(candidate.after), head_counts, live, options))
    if live["split"].null_count < live.num_rows:
        near, searched = _near_crossings(candidate)
        suites.append(
            duplicates_suite(
                _exact_crossings(tables["duplicates"]), near, searched, blocking=options.block_cross_split_duplicates
            )
        )
    return suites


def _uris(live: pa.Table, image_ids: Sequence[str]) -> list[str]:
    """Source URIs of image ids."""
    rows = live.filter(pc.is_in(live["image_id"], value_set=pa.array(image_ids, pa.string())))
    by_id = dict(zip(rows["image_id"].to_pylist(), rows["source_uri"].to_pylist(), strict=True))
    return [by_id[image_id] for image_id in image_ids if image_id in by_id]


def _exact_crossings(duplicates: pa.Table) -> list[Crossing]:
    return [
        Crossing(splits=(row["kept_split"], row["split"]), examples=(row["kept_uri"], row["source_uri"]))
        for row in duplicates.to_pylist()
        if row["split"] and row["kept_split"] and row["split"] != row["kept_split"]
    ]


def _near_crossings(candidate: Candidate) -> tuple[list[Crossing], str]:
    """Near-duplicates, one of them of this interval, in two of the source's splits; and how they were sought."""
    options = candidate.recipe.split
    rows = candidate.after.filter(pc.is_valid(candidate.after["split"]))
    hashes, place = np.unique(rows["phash"].to_numpy(), return_inverse=True)
    weights = np.bincount(place, minlength=len(hashes))
    found = neighbours(
        hashes, options.near_duplicate_distance, weights, max(2, options.max_group_share * rows.num_rows)
    )
    if found.too_large:
        return [], "the perceptual hash does not fit this data: exact duplicates only"
    same = np.stack([np.arange(len(hashes))] * 2, axis=1)
    pairs = np.concatenate([same, found.pairs])
    splits = np.searchsorted(sorted(manifest.SPLITS), rows["split"].to_numpy())
    members = np.zeros(len(hashes), np.int64)
    np.bitwise_or.at(members, place, 1 << splits)
    own = np.zeros(len(hashes), bool)
    own[place[np.asarray(pc.equal(rows["interval"], candidate.assembled.interval))]] = True
    both = members[pairs[:, 0]] | members[pairs[:, 1]]
    crossing = pairs[(np.bitwise_count(both) > 1) & own[pairs].any(axis=1)]
    searched = f"perceptual hashes at most {options.near_duplicate_distance} bits apart"
    return [_crossing(rows, place, int(left), int(right)) for left, right in crossing], searched


def _crossing(rows: pa.Table, place: np.ndarray[tuple[int], np.dtype[np.int64]], left: int, right: int) -> Crossing:
    """One image of each hash, of different splits."""
    candidates = (
        rows.take(np.flatnonzero((place == left) | (place == right))).select(["split", "source_uri"]).to_pylist()
    )
    first = candidates[0]
    second = next(row for row in candidates if row["split"] != first["split"])
    return Crossing(splits=(first["split"], second["split"]), examples=(first["source_uri"], second["source_uri"]))


def _finding(outcome: Outcome) -> Finding:
    return Finding(
        expectation=f"{outcome.check.kind}: {outcome.check.title}",
        observed=outcome.observed,
        threshold=outcome.check.threshold,
        examples=outcome.examples,
        blocking=outcome.check.blocking,
    )


def _rejection(name: str, interval: str, blocking: Sequence[Outcome]) -> str:
    told = (
        f"{outcome.suite}, {outcome.check.kind}: {outcome.check.title}: observed {outcome.observed}; "
        f"allowed {outcome.check.threshold}" + (f"; such as {', '.join(outcome.examples)}" if outcome.examples else "")
        for outcome in blocking
    )
    return "\n".join([f"dataset {name}: interval {interval} is parked; nothing of it is trained on", *told])
