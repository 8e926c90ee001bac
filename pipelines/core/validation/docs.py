"""The data docs of validations: what the page of an interval shows, where it is kept, and the lists of pages."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.core import data_docs, datasets
from pipelines.core.checks import Report, Suite
from pipelines.core.data_docs import Bar, Page, Section
from pipelines.core.errors import ImageError, NotFound
from pipelines.core.preprocessing import decode
from pipelines.core.storage import Storage
from pipelines.core.validation.candidate import Candidate, MomentSums, class_counts

_THUMBNAIL_PX = (240, 192)


def prefix_of(name: str, run: str) -> str:
    """Key prefix of the docs of one run."""
    return f"docs/{name}/{re.sub(r'[^A-Za-z0-9._-]+', '_', run)}"


def write(
    interval: Candidate, run: str, suites: Sequence[Suite], report: Report, storage: Storage, folder: Path
) -> None:
    """The page in `folder` and in the store, where it stays for each run; then the lists of all pages."""
    name, assembled = interval.recipe.name, interval.assembled
    page = Page(
        dataset=name,
        interval=assembled.interval,
        run=run,
        figures=(
            (f"{assembled.num_images:,}", "images in the interval"),
            (f"{interval.after.num_rows:,}", "images in the set with it"),
            (f"{len(class_counts(interval.after)):,}", "classes"),
            (f"{assembled.num_quarantined:,}", "files turned away"),
        ),
        sections=_sections(interval),
        thumbnails=_thumbnails(interval, report, storage),
        notes=assembled.notes,
    )
    folder.mkdir()
    (folder / "index.html").write_text(data_docs.render(page, suites, report))
    (folder / "validation.json").write_text(data_docs.raw_json(report))
    prefix = prefix_of(name, run)
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


def _sections(interval: Candidate) -> tuple[Section, ...]:
    after, before = class_counts(interval.after), class_counts(interval.before)
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


def _thumbnails(interval: Candidate, report: Report, storage: Storage) -> dict[str, bytes]:
    """Small pictures of the examples that are readable images."""
    wanted = pa.array(sorted({uri for outcome in report.outcomes for uri in outcome.examples}), pa.string())
    pictures: dict[str, bytes] = {}
    for table in (interval.live, interval.tables["duplicates"], interval.tables["quarantine"]):
        rows = table.filter(pc.and_(pc.is_in(table["source_uri"], value_set=wanted), pc.is_valid(table["image_id"])))
        for row in rows.select(["image_id", "source_uri"]).to_pylist():
            with contextlib.suppress(ImageError, NotFound):
                pictures[row["source_uri"]] = _thumbnail(storage.read(datasets.blob_key(row["image_id"])))
    return pictures


def _thumbnail(data: bytes) -> bytes:
    image = decode(data, at_least=_THUMBNAIL_PX).image
    image.thumbnail(_THUMBNAIL_PX)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return buffer.getvalue()
