"""What a recipe names must be there before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.core import named_files
from pipelines.core.errors import RecipeError
from pipelines.core.recipe import Features, Model, Recipe, Training


def test_weights_to_start_from(tmp_path: Path) -> None:
    path = tmp_path / "start.pt"
    recipe = Recipe(name="x1", model=Model(weights=str(path)))
    named_files.check_for_ingest(recipe)
    with pytest.raises(RecipeError, match=rf"model\.weights = '{path}': {path} is no file; name one .*'torchvision'"):
        named_files.check_for_training(recipe)
    path.write_bytes(b"weights")
    named_files.check_for_training(recipe)
    named_files.check_for_training(Recipe(name="x1", model=Model(weights="torchvision", backbone="resnet18")))
    named_files.check_for_training(Recipe(name="x1"))


def test_weights_of_the_embedding(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    features = Features(embedding=f"torchvision:resnet18:{path}")
    recipe = Recipe(name="x1", features=features)
    named_files.check_for_training(recipe)  # they were needed when the images came in
    head = Recipe(name="x1", features=features, training=Training(mode="head"))
    for check, asked in ((named_files.check_for_ingest, recipe), (named_files.check_for_training, head)):
        with pytest.raises(RecipeError, match=rf"features\.embedding = .*{path} is no file; .*'hog-color-v1'"):
            check(asked)
    path.write_bytes(b"weights")
    named_files.check_for_ingest(recipe)
    named_files.check_for_training(head)
