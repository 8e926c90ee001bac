"""What a recipe names outside itself, looked for before a chain's first step."""

from __future__ import annotations

from pipelines.core import named_files
from pipelines.core.embedding_name import parse
from pipelines.core.errors import RecipeError
from pipelines.core.recipe import Recipe
from pipelines.core.storage import Storage


def check(storage: Storage, recipe: Recipe, *, ingest: bool, training: bool) -> None:
    """Raises RecipeError that names the key, its value and what is allowed.

    An ingest does not stop for weights that only a training needs.
    """
    if ingest:
        named_files.check_for_ingest(recipe)
        _check_package(storage, parse(recipe.features.embedding).digest)
    if training:
        named_files.check_for_training(recipe)


def _check_package(storage: Storage, digest: str) -> None:
    if not digest:
        return
    from pipelines.core import package_store  # and with it numpy, which the start of a step does without

    if not package_store.is_there(storage, digest):
        raise RecipeError(
            f"features.embedding = 'package:{digest}': no registered package has this digest; see `darkroom models`"
        )
