"""Files that a recipe names, looked for where a chain starts: hours before the step that would miss them."""

from __future__ import annotations

from pipelines.core.embedding_name import parse
from pipelines.core.errors import RecipeError
from pipelines.core.recipe import TORCHVISION, Recipe
from pipelines.core.starting_weights import path_of


def check_for_ingest(recipe: Recipe) -> None:
    """Raises RecipeError where the weights of features.embedding are not there."""
    path = parse(recipe.features.embedding).path
    if path is not None and not path.is_file():
        raise RecipeError(
            f"features.embedding = {recipe.features.embedding!r}: {path.absolute()} is no file; name one with the "
            "state dict of the backbone, or take 'hog-color-v1'"
        )


def check_for_training(recipe: Recipe) -> None:
    """Raises RecipeError where what the training starts from is not there."""
    if recipe.training.mode == "head":
        check_for_ingest(recipe)
    path = path_of(recipe.model)
    if path is not None and not path.is_file():
        raise RecipeError(
            f"model.weights = {recipe.model.weights!r}: {path.absolute()} is no file; name one with a state dict, "
            f"{TORCHVISION!r} for what torchvision published, or nothing"
        )
