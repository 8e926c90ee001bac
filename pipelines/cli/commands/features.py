"""Commands: features."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from pipelines.core.recipe import Recipe
    from pipelines.settings import Settings


def register(app: typer.Typer) -> None:
    """Add this group's commands."""
    app.command("similar")(similar)
    app.command("feast", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(feast)


def similar(
    image: Annotated[Path, typer.Argument(help="An image file: JPEG, PNG, WebP, BMP or GIF.", metavar="IMAGE")],
    dataset: Annotated[
        str, typer.Option("--dataset", "-d", help="Search in this one; the default model's if empty.")
    ] = "",
    top: Annotated[int, typer.Option("--top", "-n", min=1, max=100, help="How many.")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """The stored images that look most like IMAGE, from the feature store.

    Compares embeddings (features.embedding in the recipe) by cosine: 1 is the same picture. Finds mislabelled
    neighbours, repeated photographs, and what a wrong prediction was mistaken for.

    [dim]darkroom similar photo.jpg --dataset clothing --top 10[/dim]
    """
    from pipelines import settings as settings_module

    settings = settings_module.load()
    rows = _similar(settings, _recipe(settings, dataset), image, top)
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
        return
    from rich.table import Table

    from pipelines.cli.tables import console

    table = Table(box=None, header_style="dim")
    for column, justify in (("similarity", "right"), ("class", "left"), ("taken", "left"), ("source", "left")):
        table.add_column(column, justify=justify, overflow="fold")  # type: ignore[arg-type]
    for row in rows:
        table.add_row(
            f"{row['similarity']:.3f}",
            row["label"] or "—",
            row["event_timestamp"][:10],
            row["source_uri"] or row["path"],
        )
    console().print(table)


def _recipe(settings: Settings, name: str) -> Recipe:
    from pipelines.core import recipe as recipes

    return recipes.get(name or settings.default_model, *settings.recipe_folders)


def _similar(settings: Settings, recipe: Recipe, image: Path, top: int) -> list[dict[str, Any]]:
    from pipelines.adapters.online_store import OnlineStore
    from pipelines.cli.feature_stores import open_embedder
    from pipelines.core import datasets, labels
    from pipelines.core.embedders import embed_image
    from pipelines.core.errors import ImageError, UserError
    from pipelines.core.storage import open_storage

    if settings.features_redis:
        raise UserError("similar searches PostgreSQL; here DARKROOM_FEATURES_REDIS puts the online store into Redis")
    try:
        data = image.read_bytes()
    except OSError as error:
        raise UserError(f"{image}: {error.strerror}") from error
    storage = open_storage(settings.store_uri, endpoint_url=settings.s3_endpoint_url)
    embedder = open_embedder(settings, storage, recipe.features.embedding)
    try:
        vector = embed_image(embedder, data)
    except ImageError as error:
        raise UserError(f"{image}: {error.reason}: {error}") from error
    found = OnlineStore(settings.database_url("feast"), recipe.name).nearest(embedder.view, vector, top)
    cache = settings.home / "cache"
    index = labels.index_path(cache, storage, recipe.name)
    labels.update(storage, recipe.name, index, cache)
    known = labels.find(index, [one.image_id for one in found]).images
    return [
        {
            "image_id": one.image_id,
            "similarity": round(one.similarity, 6),
            "label": known[one.image_id].label if one.image_id in known else None,
            "source_uri": known[one.image_id].source_uri if one.image_id in known else None,
            "event_timestamp": one.event_timestamp.isoformat(),
            "path": storage.locate(datasets.blob_key(one.image_id)),
        }
        for one in found
    ]


def feast(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="The recipe whose feature store is meant.", metavar="NAME")],
) -> None:
    """Run Feast's own command on a recipe's feature store.

    [dim]darkroom feast digits feature-views list[/dim]
    """
    import os

    from pipelines import settings as settings_module
    from pipelines.cli.feature_stores import open_repository

    settings = settings_module.load()
    repository = open_repository(settings, _recipe(settings, name).name)
    os.environ.update(repository.variables(), DARKROOM_DEFAULT_MODEL=name)
    repository.command(context.args)
