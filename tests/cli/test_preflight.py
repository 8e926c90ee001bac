"""What a recipe names and is not there is said before a step has run, whichever way the recipe came."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipelines.cli import preflight, step
from pipelines.cli.chain import command
from pipelines.cli.execute import storage_of
from pipelines.core import package_store
from pipelines.core import recipe as recipes
from pipelines.core.errors import RecipeError
from pipelines.core.model_package import MANIFEST
from pipelines.local import state
from pipelines.settings import Settings

DIGEST = "0" * 64
WRONG = {
    "model.weights": ("/nowhere/start.pt", "state dict"),
    "features.embedding": ("torchvision:resnet18:/nowhere/start.pt", "state dict"),
}


@pytest.fixture
def recipe(home_settings: Settings) -> Path:
    folder = home_settings.recipe_folders[1]
    folder.mkdir(parents=True)
    (folder / "demo.toml").write_text('[source]\nuri = "/nowhere"\n')
    return folder / "demo.toml"


def _is_untouched(settings: Settings) -> bool:
    return not list(storage_of(settings).list("")) and state.read(settings) is None


@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize("key", sorted(WRONG))
def test_of_a_file(home_settings: Settings, recipe: Path, key: str, direct: bool) -> None:
    section, name = key.split(".")
    value, allowed = WRONG[key]
    recipe.write_text(recipe.read_text() + f'[{section}]\n{name} = "{value}"\n')
    with pytest.raises(RecipeError, match=rf"{key} = '{value}': /nowhere/start\.pt is no file; .*{allowed}"):
        command.run_chain(home_settings, command.recipe_for(home_settings, None, "demo"), direct=direct)
    assert _is_untouched(home_settings)


@pytest.mark.parametrize("first", ["settle", "plan"])
def test_of_changed_keys_as_the_trigger_form_hands_them_on(home_settings: Settings, recipe: Path, first: str) -> None:
    key = "model.weights" if first == "settle" else "features.embedding"
    changes = json.dumps({key: WRONG[key][0]})
    dag = "train_classifier__demo" if first == "settle" else "ingest_images__demo"
    with pytest.raises(RecipeError, match=rf"{key} = "):
        step.main([first, "--run", f"{dag}/manual", "--recipe", "demo", "--set", changes])
    assert _is_untouched(home_settings)


@pytest.mark.parametrize("changes", ["{model.weights: 1}", "[1]", '{"model.weights": 1}', '{"source.timezone": "x"}'])
def test_of_texts_too(home_settings: Settings, recipe: Path, changes: str) -> None:
    with pytest.raises(RecipeError, match=r"--set|model\.weights|source\.timezone"):
        step.main(["settle", "--run", "train_classifier__demo/manual", "--recipe", "demo", "--set", changes])
    assert _is_untouched(home_settings)


def test_an_ingest_does_not_wait_for_weights_of_a_training(home_settings: Settings) -> None:
    asked = recipes.from_dict({"name": "demo", "model": {"weights": "/nowhere/start.pt"}})
    preflight.check(storage_of(home_settings), asked, ingest=True, training=False)


def test_a_package_that_embeds_must_be_registered(home_settings: Settings) -> None:
    storage = storage_of(home_settings)
    asked = recipes.from_dict({"name": "demo", "features": {"embedding": f"package:{DIGEST}"}})
    with pytest.raises(RecipeError, match=rf"features\.embedding = 'package:{DIGEST}': .*`darkroom models`"):
        preflight.check(storage, asked, ingest=True, training=True)
    storage.write(f"{package_store.package_prefix(DIGEST)}/{MANIFEST}", b"{}")
    preflight.check(storage, asked, ingest=True, training=True)
