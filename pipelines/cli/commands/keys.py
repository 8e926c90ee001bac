"""Commands about API keys: create, list, revoke."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines import settings as settings_module
from pipelines.cli.tables import console
from pipelines.core.access import ROLES, new_key
from pipelines.core.actors import person
from pipelines.core.errors import UserError

if TYPE_CHECKING:
    from pipelines.adapters.database import ApiKey

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_SPAN = re.compile(r"(\d{1,5})([hd])")
_PER_MINUTE = (
    "Most images a minute, of each deployment by itself: every version of every model that serves, and the search for "
    "similar images. Processes of a deployment give an equal share each, or, with Redis, what is left of the whole. "
    "0: no limit."
)
AsJson = Annotated[bool, typer.Option("--json", help="For programs.")]

keys = typer.Typer(no_args_is_help=True, help="API keys of the gateway: who may ask what, and how often.")


def register(app: typer.Typer) -> None:
    """Add this group's commands."""
    app.add_typer(keys, name="keys")


@keys.command()
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Whose key it is: small letters, digits, `.`, `_`, `-`.")],
    role: Annotated[str, typer.Option(help=f"One of {', '.join(ROLES)}.")] = "predictor",
    model: Annotated[
        list[str] | None, typer.Option("--model", help="Only good for this model; may be given again. Else for all.")
    ] = None,
    expires: Annotated[str, typer.Option(help="Ends after this time: 12h, 90d, or `never`.")] = "90d",
    per_minute: Annotated[int, typer.Option(min=0, help=_PER_MINUTE)] = 0,
    per_day: Annotated[
        int, typer.Option(min=0, help="Most images a day (UTC), counted over everything together; 0: no limit.")
    ] = 0,
    as_json: AsJson = False,
) -> None:
    """Make a key and print it, this once: only its digest is stored.

    The key alone goes to standard output: [dim]darkroom keys create shop > shop.key[/dim]
    """
    from pipelines.adapters import database

    if not _NAME.fullmatch(name):
        raise UserError(f"NAME {name!r}: expected up to 63 small letters, digits, `.`, `_` and `-`, such as shop-1")
    if role not in ROLES:
        raise UserError(f"--role {role!r}: expected one of {', '.join(ROLES)}")
    grant = database.Grant(
        name=name,
        role=role,
        models=tuple(model or ()),
        per_minute=per_minute or None,
        per_day=per_day or None,
        expires_at=_end(expires),
    )
    key = new_key()
    created = database.create_key(settings_module.load().database_url("darkroom"), key, grant, actor=person())
    if as_json:
        typer.echo(json.dumps({**asdict(created), "key": key}, default=str))
        return
    typer.echo(key)
    until = f"until {created.expires_at:%Y-%m-%d %H:%M} UTC" if created.expires_at else "for ever"
    typer.echo(f"{role} key {created.id} called {name}, good {until}; it is not shown again", err=True)


@keys.command("list")
def list_(as_json: AsJson = False) -> None:
    """List keys, newest first: never the keys themselves."""
    from rich.table import Table

    from pipelines.adapters import database

    now = datetime.now(UTC)
    found = database.api_keys(settings_module.load().database_url("darkroom"))
    if as_json:
        typer.echo(json.dumps([{**asdict(one), "state": one.state(now)} for one in found], indent=1, default=str))
        return
    table = Table()
    for column in ("id", "name", "role", "models", "limits", "state", "made by", "made (UTC)", "ends (UTC)"):
        table.add_column(column, overflow="fold")
    for one in found:
        ends = f"{one.expires_at:%Y-%m-%d %H:%M}" if one.expires_at else "never"
        made = f"{one.created_at:%Y-%m-%d %H:%M}"
        models = ", ".join(one.models) or "all"
        table.add_row(one.id, one.name, one.role, models, _limits(one), one.state(now), one.created_by, made, ends)
    console().print(table)


@keys.command()
def revoke(
    key: Annotated[str, typer.Argument(metavar="KEY", help="Name or id, as `darkroom keys list` shows them.")],
) -> None:
    """End a key. Serving processes refuse it within two seconds."""
    from pipelines.adapters import database

    revoked = database.revoke_key(settings_module.load().database_url("darkroom"), key, actor=person())
    typer.echo(f"key {revoked.id} called {revoked.name} is revoked")


def _limits(key: ApiKey) -> str:
    limits = [f"{number:,} {what}" for number, what in ((key.per_minute, "a minute"), (key.per_day, "a day")) if number]
    return ", ".join(limits) or "none"


def _end(text: str) -> datetime | None:
    """Raises UserError."""
    if text == "never":
        return None
    found = _SPAN.fullmatch(text)
    if found is None or int(found[1]) == 0:
        raise UserError(f"--expires {text!r}: expected hours or days, such as 12h or 90d, or `never`")
    number = int(found[1])
    return datetime.now(UTC) + (timedelta(hours=number) if found[2] == "h" else timedelta(days=number))
