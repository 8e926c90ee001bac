"""Commands of the platform: up, down, status, logs."""

from __future__ import annotations

import json
import sys
import time
from collections import deque
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipelines import settings as settings_module
from pipelines.cli.tables import console
from pipelines.settings import Settings

if TYPE_CHECKING:
    from pipelines.local.state import ProcessStatus

STATUS_HELP = """Show every process of the platform and where to look.

With --json: `processes` (name, pid, state, port, memory in PSS bytes, restarts), `gateway_url`, `tls_url`,
`airflow_url`, `mlflow_url`, `data_docs`, `troubles` (what does not work though every process does), and `phase`
(down, starting, ready, stopping, failed).
"""


class Optional(StrEnum):
    """What `--without` leaves out."""

    AIRFLOW = "airflow"
    MLFLOW = "mlflow"
    STEP_HOST = "step-host"
    SIMILAR = "similar"


def register(app: typer.Typer) -> None:
    """Add this group's commands."""
    app.command()(up)
    app.command()(down)
    app.command(help=STATUS_HELP)(status)
    app.command()(logs)


def up(
    without: Annotated[
        list[Optional] | None,
        typer.Option(help="Leave a part out; `darkroom run --direct` needs no Airflow."),
    ] = None,
) -> None:
    """Start the platform on this machine and wait until it is ready; quick when it is up already.

    PostgreSQL, Envoy, Airflow, MLflow and what is deployed run in the background until `darkroom down`. After new code,
    versions or settings it is started again, and databases are migrated. All state is below DARKROOM_HOME.
    """
    from pipelines.cli.chain.digits import ensure_digits
    from pipelines.local import platform

    began = time.monotonic()
    settings = settings_module.load()
    ensure_digits(settings.home)  # the shipped recipe's source: Airflow schedules it from the start
    names = [one.value for one in without or ()]
    started = platform.up(settings, without=names, report=_ready_line if sys.stdout.isatty() else lambda _: None)
    verb = "was up" if started.already else "up again, with what changed," if started.restarted else "up"
    typer.echo(f"platform {verb} after {time.monotonic() - began:.1f} s")
    for name, url in _addresses(settings, names).items():
        typer.echo(f"  {name:<8} {url}")


def _ready_line(process: ProcessStatus) -> None:
    port = f"port {process.port}" if process.port else ""
    seconds = f"{process.seconds:5.1f} s" if process.seconds is not None else ""
    typer.echo(f"  {process.name:<24}{process.state:<10}{port:<12}{seconds}")


def _addresses(settings: Settings, without: list[str]) -> dict[str, str]:
    from pipelines.local.certificates import authority

    trust = f" (trust {authority(settings)})" if settings.tls_certificate is None else ""
    found = {"gateway": settings.gateway_url, "tls": settings.tls_url + trust}
    if "airflow" not in without:
        password = settings.secrets / "airflow-admin"
        found["airflow"] = f"http://127.0.0.1:{settings.port('airflow')} (user admin, password in {password})"
    if "mlflow" not in without:
        found["mlflow"] = f"http://127.0.0.1:{settings.port('mlflow')}"
    return found


def down() -> None:
    """End every process of the platform. Data, models and what is deployed stay, and `darkroom up` brings them back."""
    from pipelines.local import platform, state

    settings = settings_module.load()
    was_up = state.keeper_pid(settings) is not None
    orphans = platform.down(settings)
    also = f"; ended {orphans} more that were left over" if orphans else ""
    typer.echo(("platform down" if was_up else "the platform was not up") + also)


def status(
    as_json: Annotated[bool, typer.Option("--json", help="For programs: one JSON object.")] = False,
) -> None:
    from pipelines.local import platform, state

    settings = settings_module.load()
    found = platform.processes(settings)
    last = state.current(settings) or state.read(settings)
    phase = last.phase if last and (found or last.phase == "failed") else "down"
    table: dict[str, Any] = {
        "phase": phase,
        "processes": [
            {
                **{"name": one.name, "pid": one.pid, "state": one.state, "port": one.port},
                **{"memory": memory, "restarts": one.restarts, "log": one.log},
            }
            for one, memory in found
        ],
        "memory": sum(memory for _, memory in found),
        "troubles": list(last.troubles) if last and found else [],
        "gateway_url": settings.gateway_url,
        "tls_url": settings.tls_url,
        "airflow_url": f"http://127.0.0.1:{settings.port('airflow')}",
        "mlflow_url": f"http://127.0.0.1:{settings.port('mlflow')}",
        "data_docs": f"{settings.store_uri.rstrip('/')}/docs/index.html",
    }
    if as_json:
        typer.echo(json.dumps(table, indent=1))
        return
    _print_table(found)
    typer.echo(f"platform {phase}, {sum(memory for _, memory in found) / 1e9:.2f} GB (PSS)")
    for key in ("gateway_url", "tls_url", "airflow_url", "mlflow_url", "data_docs"):
        typer.echo(f"  {key:<12} {table[key]}")
    for trouble in table["troubles"]:
        typer.echo(trouble, err=True)
    if phase == "failed" and last is not None:
        typer.echo(last.error, err=True)


def _print_table(found: list[tuple[ProcessStatus, int]]) -> None:
    from rich.table import Table

    if not found:
        return
    table = Table(box=None, pad_edge=False)
    for column, justify in (("process", "left"), ("state", "left"), ("pid", "right"), ("port", "right")):
        table.add_column(column, justify="right" if justify == "right" else "left")
    table.add_column("MB", justify="right")
    table.add_column("restarts", justify="right")
    for one, memory in found:
        values = (one.name, one.state, one.pid or "", one.port or "", round(memory / 1e6) if memory else "")
        table.add_row(*map(str, values), str(one.restarts or ""))
    console().print(table)


def logs(
    name: Annotated[
        str | None, typer.Argument(help="A process of `darkroom status`; all of them when left out.")
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on showing what is added.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="How many of the last lines.")] = 40,
) -> None:
    """Show the logs of the platform's processes."""
    from pipelines.core.errors import NotFound

    folder = settings_module.load().home / "logs"
    known = {path.stem: path for path in sorted(folder.glob("*.log"))}
    if name is not None and name not in known:
        raise NotFound(f"no log of {name!r} in {folder}; there are: {', '.join(known) or 'none yet'}")
    chosen = {name: known[name]} if name is not None else known
    for one, path in chosen.items():
        for line in _last(path, lines):
            typer.echo(line if name else f"{one}: {line}")
    if follow:
        _follow(chosen, prefixed=name is None)


def _last(path: Path, lines: int) -> list[str]:
    with path.open(errors="replace") as file:
        return [line.rstrip("\n") for line in deque(file, lines)]


def _follow(paths: dict[str, Path], *, prefixed: bool) -> None:
    """Until interrupted. A log that was emptied by rotation is read from its beginning."""
    places = {name: path.stat().st_size for name, path in paths.items()}
    while True:
        for name, path in paths.items():
            size = path.stat().st_size
            with path.open("rb") as file:
                file.seek(places[name] if size >= places[name] else 0)
                added = file.read()
                places[name] = file.tell()
            for line in added.decode(errors="replace").splitlines():
                typer.echo(f"{name}: {line}" if prefixed else line)
        time.sleep(0.25)
