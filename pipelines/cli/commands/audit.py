"""Commands of the audit log: audit list, audit verify."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipelines import settings as settings_module
from pipelines.cli.moments import moment
from pipelines.core.errors import IntegrityError

if TYPE_CHECKING:
    from pipelines.adapters.database import Event
    from pipelines.cli.verification import Verified

AsJson = Annotated[bool, typer.Option("--json", help="For programs: JSON on standard output.")]
_TOLD = 20
"""Findings that a person is shown."""

audit = typer.Typer(no_args_is_help=True, rich_markup_mode="rich", help="Who did what to which model when, and proof.")


def register(app: typer.Typer) -> None:
    """Add this group's commands."""
    audit.command("list")(list_events)
    audit.command()(verify)
    app.add_typer(audit, name="audit")


def list_events(
    model: Annotated[str, typer.Option("--model", help="Only of this model.")] = "",
    actor: Annotated[str, typer.Option("--actor", help="Only of actors that begin so: alice, airflow:ingest.")] = "",
    since: Annotated[str, typer.Option("--since", metavar="D", help="YYYY-MM-DD or a time in ISO 8601, UTC.")] = "",
    limit: Annotated[int, typer.Option("--limit", "-n", min=0, help="The last so many rows; 0 for all.")] = 100,
    as_json: AsJson = False,
) -> None:
    """List who did what to which model when, oldest first.

    An actor is user@host for a command, airflow:DAG/RUN for a task and supervisor:host for the platform itself, as each
    says of itself.

    [dim]darkroom audit list --model digits --since 2026-01-01[/dim]
    """
    from pipelines.adapters import database

    url = settings_module.load().database_url("darkroom")
    found = database.history(
        url,
        model or None,
        actor=actor,
        since=moment("--since", since).isoformat() if since else "",
        limit=limit or None,
    )
    _print_json(found) if as_json else _print_table(found)


def verify(
    public_key: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="PEM; this installation's secrets/audit-anchors.pem unless given."),
    ] = None,
    anchor: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Copy of an anchor that must still hold; this machine's last unless given."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Examine every row and every anchor; exit code 3 where anything was changed, naming it.

    Found are rows that were edited, deleted, put in or moved, a chain that was rewritten or cut up to the last anchor,
    and anchors that were forged or deleted. Rows after the last anchor (a minute's, while the platform is up) can be
    cut off or replaced unnoticed. On another machine, give the platform's public key, or the store vouches for itself.
    """
    from pipelines.cli.verification import verify as examine

    found = examine(settings_module.load(), public_key=public_key, anchor=anchor)
    if as_json:
        typer.echo(json.dumps(_as_json(found), indent=1))
    else:
        _tell(found)
    if found.findings:
        more = f" and {found.num_findings - 1:,} more findings" if found.num_findings > 1 else ""
        raise IntegrityError(f"the audit log is not as it was written: {found.findings[0].text}{more}")


def _print_json(found: Iterable[Event]) -> None:
    """One array, written as rows come: the log may be longer than memory."""
    lead = "["
    for one in found:
        typer.echo(f"{lead}\n {json.dumps(asdict(one))}", nl=False)
        lead = ","
    typer.echo("[]" if lead == "[" else "\n]")


def _print_table(found: Iterable[Event]) -> None:
    from rich.table import Table

    from pipelines.cli.tables import console

    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("row", "at (UTC)", "who", "model", "event", "detail"):
        table.add_column(column, overflow="fold")
    for one in found:
        table.add_row(str(one.seq), one.at[:19], one.actor, one.model, one.event, _short(one.detail))
    console().print(table, highlight=False, markup=False)


def _short(detail: Mapping[str, Any]) -> str:
    """What a person looks for; --json has all of it."""
    return ", ".join(
        f"{key.replace('_', ' ')} {str(value)[:12] if key.endswith('_digest') else value}"
        for key, value in detail.items()
        if key not in ("model", "kind", "bento_key") and value != ""
    )


def _as_json(found: Verified) -> dict[str, Any]:
    anchored = found.audit.anchored
    return {
        "rows": found.audit.num_rows,
        "anchors": found.audit.num_anchors,
        "anchored_seq": anchored.seq if anchored else None,
        "anchored_at": anchored.at if anchored else None,
        "unanchored_rows": found.unanchored_rows,
        "public_key_file": found.pinned or None,
        "num_findings": found.num_findings,
        "findings": [asdict(one) for one in found.findings],
    }


def _tell(found: Verified) -> None:
    audit, anchored = found.audit, found.audit.anchored
    for one in found.findings[:_TOLD]:
        typer.echo(one.text)
    if found.num_findings > _TOLD:
        typer.echo(f"… and {found.num_findings - _TOLD:,} more (--json names {len(found.findings)})")
    until = f"the last that holds is of row {anchored.seq:,}, {anchored.at}" if anchored else "none holds"
    typer.echo(f"{audit.num_rows:,} rows, {audit.num_anchors:,} anchors: {until}; {found.unanchored_rows:,} rows since")
    if not found.pinned:
        typer.echo("the public key was taken from the store itself; --public-key FILE pins the platform's", err=True)
