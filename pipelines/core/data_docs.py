"""Data docs: one page a validation, readable without a network. Everything it shows is inside the file."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from pipelines.core.checks import Outcome, Report, Suite

Rows = Sequence[Sequence[str]]


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One line of a bar chart."""

    name: str
    value: float
    shown: str
    other: float | None = None
    """The accepted head's value, drawn as a mark."""


@dataclass(frozen=True, kw_only=True)
class Section:
    """A chart or table after the expectations."""

    title: str
    text: str = ""
    bars: tuple[Bar, ...] = ()
    header: tuple[str, ...] = ()
    rows: Rows = ()


@dataclass(frozen=True, kw_only=True)
class Page:
    """What a page is about."""

    dataset: str
    interval: str
    run: str
    figures: tuple[tuple[str, str], ...]
    """Large numbers at the top: (value, what it counts)."""
    sections: tuple[Section, ...]
    thumbnails: Mapping[str, bytes]
    """JPEG by source URI of the examples."""
    notes: tuple[str, ...] = ()


_STYLE = Path(__file__).with_suffix(".css")


def render(page: Page, suites: Sequence[Suite], report: Report) -> str:
    """The page as HTML."""
    blocking, warnings = report.unmet(blocking=True), report.unmet(blocking=False)
    met = sum(one.met for one in report.outcomes)
    figures = (*page.figures, (f"{met} / {len(report.outcomes)}", "expectations met"))
    parts = [
        f"<header><div><h1>{escape(page.dataset)} <span class=soft>· {escape(page.interval)}</span></h1>"
        f"<div class=soft>Validation of run <code>{escape(page.run)}</code></div></div>"
        f"{_verdict(len(blocking), len(warnings))}</header>",
        "<div class=figures>"
        + "".join(f"<div><b>{escape(value)}</b><span>{escape(name)}</span></div>" for value, name in figures)
        + "</div>",
        _findings(blocking, warnings, page.thumbnails),
        _notes(page.notes),
        *(_suite(suite, [one for one in report.outcomes if one.suite == suite.name]) for suite in suites),
        *(_section(section) for section in page.sections),
        f"<footer>Checked by {escape(report.engine)}; its own results are in "
        "<a href=validation.json>validation.json</a>.</footer>",
    ]
    return _document(f"{page.dataset} {page.interval}: validation", "".join(parts))


def render_index(entries: Sequence[tuple[str, str, str, int, int]], above: str = "") -> str:
    """List of pages. `entries`: (dataset, run, interval, blocking, warnings); `above`: way up to the list of all."""
    rows = "".join(
        f"<tr><td>{escape(dataset)}"
        f"<td><a href='{above}{escape(dataset)}/{escape(run)}/index.html'>{escape(interval)}</a>"
        f"<td>{_verdict(blocking, warnings)}<td class=soft><code>{escape(run)}</code>"
        for dataset, run, interval, blocking, warnings in entries
    )
    body = (
        "<header><h1>Data docs</h1></header><div class='card wide'><table>"
        f"<tr><th>dataset<th>interval<th>verdict<th>run{rows}</table></div>"
    )
    return _document("Data docs", body)


def raw_json(report: Report) -> str:
    """The engine's own results."""
    return json.dumps({"engine": report.engine, "suites": list(report.raw)}, indent=1, default=str)


def _document(title: str, body: str) -> str:
    return (
        "<!doctype html><html lang=en><meta charset=utf-8>"
        "<meta name=viewport content='width=device-width,initial-scale=1'>"
        f"<title>{escape(title)}</title><style>{_STYLE.read_text()}</style><main>{body}</main></html>\n"
    )


def _verdict(blocking: int, warnings: int) -> str:
    if blocking:
        return f"<span class='verdict bad'>rejected: {blocking} blocking</span>"
    if warnings:
        return f"<span class='verdict warn'>accepted, {warnings} {'warning' if warnings == 1 else 'warnings'}</span>"
    return "<span class='verdict good'>all expectations met</span>"


def _findings(blocking: Sequence[Outcome], warnings: Sequence[Outcome], thumbnails: Mapping[str, bytes]) -> str:
    if not blocking and not warnings:
        return ""
    parts = [_finding(one, "bad", thumbnails) for one in blocking]
    parts += [_finding(one, "warn", thumbnails) for one in warnings]
    return f"<section class=card><h2>What was found</h2>{''.join(parts)}</section>"


def _finding(outcome: Outcome, tone: str, thumbnails: Mapping[str, bytes]) -> str:
    shots = "".join(
        f"<figure>{_picture(thumbnails.get(uri))}<figcaption>{escape(uri)}</figcaption></figure>"
        for uri in outcome.examples
    )
    word = "Blocking" if tone == "bad" else "Warning"
    return (
        f"<div class='finding {tone}'><h3>{escape(outcome.check.title)}</h3><dl><dt class={tone}>{word}<dd>"
        f"<code>{escape(outcome.check.kind)}</code><dt>observed<dd>{escape(outcome.observed)}"
        f"<dt>allowed<dd>{escape(outcome.check.threshold)}</dl>"
        f"{f'<div class=shots>{shots}</div>' if shots else ''}</div>"
    )


def _picture(data: bytes | None) -> str:
    if data is None:
        return ""
    return f"<img alt='' src='data:image/jpeg;base64,{base64.b64encode(data).decode()}'>"


def _notes(notes: Sequence[str]) -> str:
    if not notes:
        return ""
    return f"<section class=card><h2>Notes</h2><ul>{''.join(f'<li>{escape(note)}' for note in notes)}</ul></section>"


def _suite(suite: Suite, outcomes: Sequence[Outcome]) -> str:
    rows = "".join(
        f"<tr><td class='mark {'good' if one.met else 'bad' if one.check.blocking else 'warn'}'>"
        f"{'✓' if one.met else '✗' if one.check.blocking else '!'}<td>{escape(one.check.title)}"
        f"<td>{escape(one.observed)}<td class=soft>{escape(one.check.threshold)}"
        for one in outcomes
    )
    return (
        f"<section class='card wide'><h2>{escape(suite.title)}</h2><table class=checks>"
        f"<tr><th><th>expectation<th>observed<th>allowed{rows}</table></section>"
    )


def _section(section: Section) -> str:
    body = f"<p class=soft>{escape(section.text)}</p>" if section.text else ""
    if section.bars:
        top = max([*(bar.value for bar in section.bars), *(bar.other or 0 for bar in section.bars)]) or 1
        body += "<div class=bars>" + "".join(_bar(bar, top) for bar in section.bars) + "</div>"
    if section.rows:
        header = "".join(f"<th>{escape(name)}" for name in section.header)
        rows = "".join("<tr>" + "".join(f"<td>{escape(cell)}" for cell in row) for row in section.rows)
        body += f"<table><tr>{header}{rows}</table>"
    return f"<section class='card wide'><h2>{escape(section.title)}</h2>{body}</section>" if body else ""


def _bar(bar: Bar, top: float) -> str:
    was = "" if bar.other is None else f"<div class=was style='left:{100 * bar.other / top:.2f}%'></div>"
    return (
        f"<div>{escape(bar.name)}</div><div class=track>"
        f"<div class=fill style='width:{100 * bar.value / top:.2f}%'></div>{was}</div>"
        f"<div class=num>{escape(bar.shown)}</div>"
    )
