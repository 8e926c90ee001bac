"""`validate`: is this interval fit to be accepted? A blocking finding parks it and ends the run."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.core import data_docs, datasets, manifest, validation
from pipelines.core.checks import Expectations, Outcome, Report, Suite
from pipelines.core.data_docs import Bar, Page, Section
from pipelines.core.errors import GateRejected, ImageError
from pipelines.core.perceptual import neighbours
from pipelines.core.preprocessing import decode
from pipelines.core.recipe import Recipe
from pipelines.core.snapshot import merge
from pipelines.core.storage import Storage
from pipelines.core.validation import Crossing, Moments, MomentSums
from pipelines.core.values import Assembled, Finding, Validated

_TABLES = {
    "manifest": manifest.MANIFEST,
    "statistics": manifest.STATISTICS,
    "quarantine": manifest.QUARANTINE,
    "duplicates": manifest.DUPLICATES,
}
_THUMBNAIL_PX = (240, 192)


@dataclass(frozen=True, kw_only=True)
class _Interval:
    """What `assemble` left, and its place in the dataset."""

    recipe: Recipe
    assembled: Assembled
    tables: Mapping[str, pa.Table]
    live: pa.Table
    """The manifest without tombstones."""
    before: pa.Table
    """The accepted set without this interval."""
    after: pa.Table
    """The set that the interval would make."""
    head: Moments
    """Statistics of the accepted images."""


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
    interval = _read(recipe, assembled, folder, accepted, storage, cache)
    suites = _suites(interval)
    report = expectations.check(suites)
    _write_docs(interval, run, suites, report, storage, out)
    blocking = report.unmet(blocking=True)
    if blocking:
        text = _rejection(recipe.name, assembled.interval, blocking)
        examples = [uri for outcome in blocking for uri in outcome.examples]
        datasets.park(storage, recipe.name, assembled.interval, run=run, reason=text, examples=examples)
        where = storage.locate(f"{_docs_prefix(recipe.name, run)}/index.html")
        raise GateRejected(f"{text}\ndata docs: {where}")
    return Validated(
        interval=assembled.interval,
        num_expectations=len(report.outcomes),
        findings=tuple(_finding(outcome) for outcome in report.unmet(blocking=False)),
    )


def _read(
    recipe: Recipe, assembled: Assembled, folder: Path, accepted: Mapping[str, str], storage: Storage, cache: Path
) -> _Interval:
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
    # A broken table is for the schema's expectation to tell; merging needs the right columns.
    whole = tables["manifest"] if set(manifest.MANIFEST.names) <= set(tables["manifest"].column_names) else None
    return _Interval(
        recipe=recipe,
        assembled=assembled,
        tables=tables,
        live=tables["manifest"].filter(pc.is_valid(tables["manifest"]["label"])),
        before=merge(parts),
        after=merge(parts if whole is None else {**parts, assembled.interval: whole}),
        head=sums.moments(),
    )


def _suites(interval: _Interval) -> list[Suite]:
    options, live, tables = interval.recipe.validation, interval.live, interval.tables
    head_counts = _class_counts(interval.before)
    known = interval.before.filter(pc.is_in(interval.before["image_id"], value_set=live["image_id"]))
    head_labels = dict(zip(known["image_id"].to_pylist(), known["label"].to_pylist(), strict=True))
    own = MomentSums()
    own.add(tables["statistics"])
    suites = [
        validation.schema_suite({name: (tables[name].schema, schema) for name, schema in _TABLES.items()}),
        validation.manifest_suite(live, options),
        validation.quarantine_suite(tables["quarantine"], interval.assembled.num_files, options),
        validation.labels_suite(live, tables["quarantine"], head_labels, head_counts),
        validation.composition_suite(_class_counts(interval.after), head_counts, live, options),
        validation.statistics_suite(
            tables["statistics"], own.moments(), interval.head, _uris(live), options.max_statistics_shift
        ),
    ]
    if live["split"].null_count < live.num_rows:
        near, searched = _near_crossings(interval)
        suites.append(
            validation.duplicates_suite(
                _exact_crossings(tables["duplicates"]), near, searched, blocking=options.block_cross_split_duplicates
            )
        )
    return suites


def _class_counts(rows: pa.Table) -> dict[str, int]:
    return {one["values"]: one["counts"] for one in pc.value_counts(rows["label"]).to_pylist()}


class _uris:  # noqa: N801 (a function with a table)
    """Source URIs of image ids."""

    def __init__(self, live: pa.Table) -> None:
        self._live = live

    def __call__(self, image_ids: Sequence[str]) -> list[str]:
        rows = self._live.filter(pc.is_in(self._live["image_id"], value_set=pa.array(image_ids, pa.string())))
        by_id = dict(zip(rows["image_id"].to_pylist(), rows["source_uri"].to_pylist(), strict=True))
        return [by_id[image_id] for image_id in image_ids if image_id in by_id]


def _exact_crossings(duplicates: pa.Table) -> list[Crossing]:
    return [
        Crossing(splits=(row["kept_split"], row["split"]), examples=(row["kept_uri"], row["source_uri"]))
        for row in duplicates.to_pylist()
        if row["split"] and row["kept_split"] and row["split"] != row["kept_split"]
    ]


def _near_crossings(interval: _Interval) -> tuple[list[Crossing], str]:
    """Near-duplicates, one of them of this interval, in two of the source's splits; and how they were sought."""
    options = interval.recipe.split
    rows = interval.after.filter(pc.is_valid(interval.after["split"]))
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
    own[place[np.asarray(pc.equal(rows["interval"], interval.assembled.interval))]] = True
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


# --- data docs ------------------------------------------------------------------------------------------------------


def _docs_prefix(name: str, run: str) -> str:
    return f"docs/{name}/{re.sub(r'[^A-Za-z0-9._-]+', '_', run)}"


def _write_docs(
    interval: _Interval, run: str, suites: Sequence[Suite], report: Report, storage: Storage, out: Path
) -> None:
    """The page beside the result and in the store, where it stays for each run; then the list of all pages."""
    name, assembled = interval.recipe.name, interval.assembled
    page = Page(
        dataset=name,
        interval=assembled.interval,
        run=run,
        figures=(
            (f"{assembled.num_images:,}", "images in the interval"),
            (f"{interval.after.num_rows:,}", "images in the set with it"),
            (f"{len(_class_counts(interval.after)):,}", "classes"),
            (f"{assembled.num_quarantined:,}", "files turned away"),
        ),
        sections=_sections(interval),
        thumbnails=_thumbnails(interval.live, report, storage),
        notes=assembled.notes,
    )
    folder = out / "docs"
    folder.mkdir()
    (folder / "index.html").write_text(data_docs.render(page, suites, report))
    (folder / "validation.json").write_text(data_docs.raw_json(report))
    prefix = _docs_prefix(name, run)
    for path in folder.iterdir():
        storage.write(f"{prefix}/{path.name}", path.read_bytes())
    # What the list shows is in the marks' names: drawing it reads no object.
    mark = f"{prefix}/{assembled.interval}.{len(report.unmet(blocking=True))}.{len(report.unmet(blocking=False))}.mark"
    for entry in list(storage.list(f"{prefix}/")):
        if entry.key.endswith(".mark") and entry.key != mark:
            storage.delete(entry.key)
    storage.write(mark, b"")
    pages = _pages(storage)
    storage.write("docs/index.html", data_docs.render_index(pages).encode())
    own = [page for page in pages if page[0] == name]
    storage.write(f"docs/{name}/index.html", data_docs.render_index(own, above="../").encode())


def _pages(storage: Storage) -> list[tuple[str, str, str, int, int]]:
    """(dataset, run, interval, blocking, warnings) of every page, newest interval first."""
    pages = []
    for entry in storage.list("docs/"):
        parts = entry.key.split("/")
        if len(parts) == 4 and parts[3].endswith(".mark"):
            shown, blocking, warnings, _ = parts[3].rsplit(".", 3)
            pages.append((parts[1], parts[2], shown, int(blocking), int(warnings)))
    pages.sort(key=lambda page: (page[2], page[1]), reverse=True)
    return sorted(pages, key=lambda page: page[0])


def _sections(interval: _Interval) -> tuple[Section, ...]:
    after, before = _class_counts(interval.after), _class_counts(interval.before)
    classes = sorted({*after, *before})
    scale = interval.after.num_rows / max(interval.before.num_rows, 1)
    bars = tuple(
        Bar(
            name=label,
            value=after.get(label, 0),
            shown=f"{after.get(label, 0):,}",
            other=before.get(label, 0) * scale if before else None,
        )
        for label in classes[:200]
    )
    text = "Images of each class in the set with this interval."
    if before:
        text += " The marks show where each class would be with the shares of the accepted set."
    own = MomentSums()
    own.add(interval.tables["statistics"])
    found = own.moments()
    rows = [
        [
            name,
            f"{found.mean[name]:.4g} ± {found.deviation[name]:.3g}",
            f"{interval.head.mean[name]:.4g} ± {interval.head.deviation[name]:.3g}" if before else "—",
        ]
        for name in found.mean
    ]
    reasons: dict[str, list[str]] = {}
    for row in interval.tables["quarantine"].select(["reason", "source_uri"]).to_pylist():
        reasons.setdefault(row["reason"], []).append(row["source_uri"])
    return (
        Section(title="Classes", text=text, bars=bars),
        Section(title="Statistics", header=("statistic", "this interval", "accepted set"), rows=rows),
        Section(
            title="Turned away, by reason",
            header=("reason", "files", "such as"),
            rows=[[reason, f"{len(uris):,}", ", ".join(uris[:3])] for reason, uris in sorted(reasons.items())],
        ),
    )


def _thumbnails(live: pa.Table, report: Report, storage: Storage) -> dict[str, bytes]:
    """Small pictures of the examples that are images of this interval."""
    wanted = {uri for outcome in report.outcomes for uri in outcome.examples}
    rows = live.filter(pc.is_in(live["source_uri"], value_set=pa.array(sorted(wanted), pa.string())))
    pictures: dict[str, bytes] = {}
    for row in rows.select(["image_id", "source_uri"]).to_pylist():
        try:
            image = decode(storage.read(datasets.blob_key(row["image_id"])), at_least=_THUMBNAIL_PX).image
        except ImageError:
            continue
        image.thumbnail(_THUMBNAIL_PX)
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=80)
        pictures[row["source_uri"]] = buffer.getvalue()
    return pictures
