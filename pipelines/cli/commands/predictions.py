"""Commands of the prediction log: predictions list, show, export, collect."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipelines import settings as settings_module
from pipelines.cli.moments import moment
from pipelines.core.errors import NotFound

if TYPE_CHECKING:
    from pipelines.core.predictions import Selection

Model = Annotated[str, typer.Option("--model", help="Only of this model.")]
Since = Annotated[str, typer.Option("--since", metavar="D", help="YYYY-MM-DD or a time in ISO 8601, UTC.")]
Until = Annotated[str, typer.Option("--until", metavar="D", help="The first moment that is left out.")]
Digest = Annotated[str, typer.Option("--package", metavar="DIGEST", help="Only of this package, or its first digits.")]
AsJson = Annotated[bool, typer.Option("--json", help="For programs: JSON on standard output.")]
_LISTS = ("probabilities", "embedding")

predictions = typer.Typer(no_args_is_help=True, rich_markup_mode="rich", help="What was answered: a sample of it.")


def register(app: typer.Typer) -> None:
    """Add this group's commands."""
    predictions.command("list")(list_predictions)
    predictions.command()(show)
    predictions.command()(export)
    predictions.command()(collect)
    app.add_typer(predictions, name="predictions")


def list_predictions(
    model: Model = "",
    since: Since = "",
    until: Until = "",
    package: Digest = "",
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="The newest so many.")] = 100,
    as_json: AsJson = False,
) -> None:
    """List logged predictions, oldest first: when, which version, which request, whose, and the answer.

    [dim]darkroom predictions list --model digits --since 2026-01-01[/dim]
    """
    from pipelines.core.predictions import READ

    columns = [name for name in READ.names if name not in _LISTS]
    _print(_newest(_selection(model, since, until, package), columns, limit), as_json=as_json)


def show(
    request_id: Annotated[str, typer.Argument(metavar="REQUEST_ID", help="As the answer and X-Request-ID name it.")],
    as_json: AsJson = False,
) -> None:
    """Show what a request was answered, with which package; `darkroom trace --request` goes on to its data.

    With --json also probabilities and embedding.
    """
    from pipelines.cli.trail import not_logged
    from pipelines.core.predictions import READ, Selection

    found = _newest(Selection(request_id=request_id), READ.names, 1000)
    if not found:
        raise NotFound(not_logged(settings_module.load(), request_id))
    _print(found, as_json=as_json)


def export(
    out: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="A Parquet file to write; JSON lines without.")
    ] = None,
    model: Model = "",
    since: Since = "",
    until: Until = "",
    package: Digest = "",
) -> None:
    """Write everything that was logged, probabilities and embeddings included, in bounded memory.

    [dim]darkroom predictions export digits.parquet --model digits[/dim]
    """
    selection = _selection(model, since, until, package)
    if out is None:
        for row in _rows(selection):
            typer.echo(json.dumps(_plain(row)))
        return
    typer.echo(f"{_write(selection, out):,} predictions in {out}")


def collect() -> None:
    """Bring to the store what serving processes have finished; the platform does so every five minutes.

    Where it does not run, as beside a process in a pod, run this regularly: DARKROOM_HOME and DARKROOM_STORE say where
    from and where to. Two at once, and one after a kill, leave everything in the store once.
    """
    from pipelines.cli.execute import storage_of
    from pipelines.core.prediction_collection import collect as work

    settings = settings_module.load()
    found = work(settings.prediction_spool, storage_of(settings))
    typer.echo(f"{found.num_predictions:,} predictions, {found.num_images:,} images, {found.num_objects:,} objects")
    if found.num_unreadable:
        typer.echo(f"{found.num_unreadable} files in {settings.prediction_spool} are of another version", err=True)


def _selection(model: str, since: str, until: str, package: str) -> Selection:
    from pipelines.core.predictions import Selection

    return Selection(
        model=model,
        since=moment("--since", since) if since else None,
        until=moment("--until", until) if until else None,
        package_digest=package,
    )


def _newest(selection: Selection, columns: list[str], limit: int) -> list[dict[str, Any]]:
    """The last so many rows, oldest first."""
    from pipelines.cli.execute import storage_of
    from pipelines.core.predictions import newest

    return newest(storage_of(settings_module.load()), selection, limit=limit, columns=columns)


def _rows(selection: Selection) -> Iterator[dict[str, Any]]:
    from pipelines.cli.execute import storage_of
    from pipelines.core.predictions import read

    for batch in read(storage_of(settings_module.load()), selection):
        yield from batch.to_pylist()


def _write(selection: Selection, out: Path) -> int:
    """Rows that were written; the file is there whole or not at all."""
    import pyarrow.parquet as pq

    from pipelines.cli.execute import storage_of
    from pipelines.core.predictions import READ, read

    num_rows = 0
    partial = out.with_name(f".{out.name}.partial")
    try:
        with pq.ParquetWriter(partial, READ, compression="zstd") as writer:
            for batch in read(storage_of(settings_module.load()), selection):
                writer.write_batch(batch)
                num_rows += batch.num_rows
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)
    return num_rows


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value.isoformat() if isinstance(value, datetime) else value for name, value in row.items()}


def _print(rows: Iterable[dict[str, Any]], *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps([_plain(row) for row in rows], indent=1))
        return
    from rich.table import Table

    from pipelines.cli.tables import console

    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("at (UTC)", "model", "package", "request", "image", "asked by", "answer", "sha256"):
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(
            row["at"].isoformat()[:19],
            f"{row['model']}:{row['version']}",
            row["package_digest"][:8],
            row["request_id"],
            str(row["image_index"]),
            row["credential"],
            row["class_name"],
            row["image_sha256"][:12],
        )
    console().print(table, highlight=False, markup=False)
