"""Recipes in files: which are registered, and which are templates."""

from __future__ import annotations

import tomllib
from pathlib import Path

from pipelines.core.errors import RecipeError
from pipelines.core.recipe.recipe import Recipe
from pipelines.core.recipe.tables import from_dict


def load(path: Path) -> Recipe:
    """Read a TOML recipe; `name` defaults to the file's name. Raises RecipeError naming file and key."""
    try:
        table = tomllib.loads(path.read_text("utf-8"))
        return from_dict({"name": path.stem, **table})
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError, RecipeError) as error:
        raise RecipeError(f"{path}: {error}") from error


def registered(*folders: Path) -> tuple[dict[str, Recipe], dict[Path, RecipeError]]:
    """Every recipe in the folders by name, where a later folder wins; and the errors of the files that do not load.

    A file without source.uri is a template for data that are named later: see `template`.
    """
    recipes: dict[str, Recipe] = {}
    broken: dict[Path, RecipeError] = {}
    for folder in folders:
        for path in sorted(folder.glob("*.toml")):
            try:
                recipe = load(path)
                if recipe.source.uri:
                    recipes[recipe.name] = recipe
            except RecipeError as error:
                broken[path] = error
    return recipes, broken


def find(name: str, *folders: Path) -> Recipe | None:
    """A registered recipe; None where there is none. Raises RecipeError where the file of this name does not load."""
    recipes, broken = registered(*folders)
    for path, error in broken.items():
        if path.stem == name:
            raise error
    return recipes.get(name)


def template(name: str, *folders: Path) -> Path | None:
    """The file of a recipe that has no source yet; None where there is none. Raises RecipeError for a broken one."""
    path = next((folder / f"{name}.toml" for folder in folders if (folder / f"{name}.toml").is_file()), None)
    return path if path and not load(path).source.uri else None


def get(name: str, *folders: Path) -> Recipe:
    """A registered recipe. Raises RecipeError as `find` does, and where there is none, listing those there are."""
    recipe = find(name, *folders)
    if recipe is None:
        recipes, broken = registered(*folders)
        unread = "".join(f"\ndoes not load: {error}" for error in broken.values())
        raise RecipeError(
            f"{name}: no such recipe; there are: {', '.join(sorted(recipes))}; `darkroom run --data` makes one{unread}"
        )
    return recipe
