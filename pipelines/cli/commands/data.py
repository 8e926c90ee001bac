"""Commands about data: gc."""

from __future__ import annotations

import json
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines import settings as settings_module
from pipelines.cli.tables import console

if TYPE_CHECKING:
    from pipelines.core.garbage import Garbage, Roots
    from pipelines.core.storage import Storage
    from pipelines.settings import Settings

_DAY_S = 86_400.0


def register(app: typer.Typer) -> None:
    """Add this group's commands."""
    app.command()(gc)


def gc(
    older_than: Annotated[
        float, typer.Option(metavar="DAYS", min=0, help="Keep everything used since. Below 1: only while no step runs.")
    ] = 30.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be freed.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="For programs: JSON on standard output.")] = False,
) -> None:
    """Free images, results, runs, packages and bentos that nothing refers to any more, and predictions of long ago.

    Kept are, whatever their age: the datasets as they are now and the runs that made them, parked intervals, each DAG's
    latest run, every registered model with the images it learned from, the bentos that serve and those that `darkroom
    rollback` would return to; and whatever was used in the last DAYS days. Steps may run meanwhile.

    Of the prediction log, the last DARKROOM_KEEP_PREDICTIONS_DAYS days (90) are kept, whatever DAYS is.

    A version whose bento is gone can still be promoted: `darkroom promote` builds it again.

    [dim]darkroom gc --older-than 30 --dry-run[/dim]
    """
    from pipelines.cli.execute import storage_of
    from pipelines.core import garbage

    settings = settings_module.load()
    storage = storage_of(settings)
    cutoff = time.time() - older_than * _DAY_S
    found = list(
        garbage.find_garbage(storage, garbage.mark(storage, _roots(settings, storage, cutoff), cutoff), cutoff)
    )
    if not dry_run and found:
        # What began since the first look may need some of it.
        marks = garbage.mark(storage, _roots(settings, storage, cutoff), cutoff)
        found = list(garbage.free(storage, found, marks, cutoff))
    found += _old_predictions(settings, storage, dry_run=dry_run)
    found += _local_garbage(settings, storage, cutoff, dry_run=dry_run)
    _tell(found, dry_run=dry_run, as_json=as_json)


def _roots(settings: Settings, storage: Storage, cutoff: float) -> Roots:
    """What the registry and the deployments refer to. Raises PlatformError where their database does not answer."""
    from pipelines.core.garbage import Roots

    if not any(next(storage.list(prefix), None) for prefix in ("packages/", "bentos/")):
        return Roots()  # nothing was ever registered, so there may be no database yet
    from pipelines.adapters import database
    from pipelines.adapters.tracking import MlflowRegistry

    url = settings.database_url("darkroom")
    kept = []
    for state in database.desired_state(url):
        before = database.previous(url, state.model)
        kept += [one for one in (state.desired, state.live, before) if one is not None]
    for deployment in database.deployments(url, limit=1_000_000):
        times = (deployment.requested_at, deployment.live_at, deployment.ended_at)
        if any(at is not None and at.timestamp() >= cutoff for at in times):
            kept.append(deployment)
    registered = {version.package_digest for version in MlflowRegistry(settings).versions()}
    return Roots(
        packages=frozenset(registered | {one.build.package_digest for one in kept}),
        bento_keys=frozenset(one.build.bento_key for one in kept),
    )


def _old_predictions(settings: Settings, storage: Storage, *, dry_run: bool) -> Iterator[Garbage]:
    from pipelines.core import predictions
    from pipelines.core.garbage import Garbage

    before = predictions.first_day_kept(settings.keep_predictions_days, datetime.now(UTC))
    for entry in predictions.expired(storage, before):
        if not dry_run:
            storage.delete(entry.key)
        yield Garbage(kind="predictions", key=entry.key, num_objects=1, size_bytes=entry.size_bytes)


def _local_garbage(settings: Settings, storage: Storage, cutoff: float, *, dry_run: bool) -> Iterator[Garbage]:
    """This machine's old copies of remote objects, and what killed processes left half-written."""
    from pipelines.core.garbage import Garbage
    from pipelines.core.storage import LocalStorage

    cache = settings.home / "cache"
    places = [("cache", path) for folder in ("s3", "archives") for path in (cache / folder).glob("*")]
    places += [("scratch", path) for path in (settings.home / "scratch").glob("*")]
    places += [("checkpoint", path) for path in (settings.home / "checkpoints").glob("*")]
    if isinstance(storage, LocalStorage):
        places += [("scratch", path) for path in storage.leftovers()]
    for kind, path in places:
        try:
            newest, size = _newest_and_size(path)
        except FileNotFoundError:  # whoever was writing it has finished
            continue
        if newest < cutoff:
            if not dry_run:
                with suppress(FileNotFoundError):
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            yield Garbage(kind=kind, key=str(path), num_objects=1, size_bytes=size)


def _newest_and_size(path: Path) -> tuple[float, int]:
    """When anything in a file or folder last changed, and its size; a cached copy counts by its folder alone."""
    newest, size = path.stat().st_mtime, 0
    for one in (path, *path.rglob("*")):
        status = one.lstat()
        if path.parent.name in ("scratch", "checkpoints"):
            newest = max(newest, status.st_mtime)
        size += status.st_size if one.is_file() else 0
    return newest, size


def _tell(found: list[Garbage], *, dry_run: bool, as_json: bool) -> None:
    counts, sizes = Counter[str](), Counter[str]()
    for one in found:
        counts[one.kind] += one.num_objects
        sizes[one.kind] += one.size_bytes
    if as_json:
        freed = {kind: {"num_objects": counts[kind], "size_bytes": sizes[kind]} for kind in sorted(counts)}
        typer.echo(json.dumps({"dry_run": dry_run, "size_bytes": sizes.total(), "freed": freed}, indent=1))
        return
    from rich.table import Table

    table = Table("what", "objects", "MB", title="would be freed" if dry_run else "freed")
    for kind in sorted(counts):
        table.add_row(kind, f"{counts[kind]:,}", f"{sizes[kind] / 1e6:,.1f}")
    table.add_row("total", f"{counts.total():,}", f"{sizes.total() / 1e6:,.1f}", style="bold")
    console().print(table)
