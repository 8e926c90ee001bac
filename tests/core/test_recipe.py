"""Recipes check themselves and say which key is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.core import recipe as recipes
from pipelines.core.errors import RecipeError

SHIPPED = Path(recipes.__file__).resolve().parents[2] / "recipes"


def test_every_shipped_recipe_loads() -> None:
    found, broken = recipes.registered(SHIPPED)
    assert "digits" in found
    assert not broken


def test_a_recipe_without_a_source_is_a_template(tmp_path: Path) -> None:
    assert recipes.find("cifar10", SHIPPED) is None
    assert recipes.template("cifar10", SHIPPED) == SHIPPED / "cifar10.toml"
    assert recipes.template("digits", SHIPPED) is None
    assert recipes.template("nothing", SHIPPED) is None


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"name": "x1", "training": {"epoch": 3}}, ["training.epoch", "unknown key", "epochs"]),
        ({"name": "x1", "training": {"epochs": 0}}, ["training.epochs = 0", "at least 1"]),
        ({"name": "x1", "training": {"epochs": "3"}}, ["training.epochs = '3'", "int"]),
        ({"name": "x1", "training": {"epochs": True}}, ["training.epochs = True", "int"]),
        ({"name": "x1", "model": {"backbone": "vgg"}}, ["model.backbone = 'vgg'", "one of", "resnet18"]),
        ({"name": "x1", "features": {"where": "a > 1"}}, ["features.where", "list of strings"]),
        ({"name": "Bad Name"}, ["name = 'Bad Name'", "lower-case"]),
        ({"name": "x1", "training": 3}, ["training", "expected a table"]),
        ({"training": {}}, ["missing key name"]),
        ({"name": "x1", "training": {"mode": "finetune"}}, ["training.mode = 'finetune'", "model.weights"]),
        ({"name": "x1", "training": {"optimizer": "lion"}}, ["training.optimizer = 'lion'", "muon"]),
        (
            {"name": "x1", "training": {"schedule": "trapezoid", "warmup_share": 0.5, "cooldown_share": 0.6}},
            ["training.warmup_share + training.cooldown_share", "at most 1"],
        ),
        ({"name": "x1", "model": {"embedding_dim": 3}}, ["model.embedding_dim = 3", "0 or at least 8"]),
        (
            {"name": "x1", "model": {"backbone": "airbench"}, "preprocessing": {"width": 8}},
            ["model.backbone = 'airbench'", "preprocessing", "16"],
        ),
        (
            {"name": "x1", "model": {"backbone": "convnext_tiny"}, "preprocessing": {"height": 24}},
            ["model.backbone = 'convnext_tiny'", "at least 32"],
        ),
        (
            {"name": "x1", "model": {"backbone": "airbench"}, "augmentation": {"start_size": 0.25}},
            ["augmentation.start_size = 0.25", "8 px", "needs 16", "set 0.5 or more"],
        ),
        ({"name": "x1", "training": {"weight_decay": -0.01}}, ["training.weight_decay = -0.01", "must be -1"]),
        ({"name": "x1", "training": {"momentum": -0.9}}, ["training.momentum = -0.9", "must be -1"]),
        ({"name": "x1", "training": {"batch_size": 1}}, ["training.batch_size = 1", "at least 2"]),
        ({"name": "x1", "training": {"micro_batch": 1}}, ["training.micro_batch = 1", "batch norm"]),
        (
            {"name": "x1", "training": {"mode": "head"}, "evaluation": {"tta": "mirror"}},
            ["evaluation.tta = 'mirror'", "training.mode = 'head'"],
        ),
        (
            {"name": "x1", "model": {"weights": "torchvision", "backbone": "small"}},
            ["model.weights = 'torchvision'", "model.backbone = 'small'", "resnet18", "state-dict file"],
        ),
        ({"name": "x1", "model": {"weights": "torchvision", "backbone": "airbench"}}, ["'airbench'", "convnext_tiny"]),
        ({"name": "x1", "features": {"embedding": "hog"}}, ["features.embedding = 'hog'", "hog-color-v1", "package:"]),
        (
            {"name": "x1", "features": {"embedding": "torchvision:vgg:w.pth"}},
            ["features.embedding = 'torchvision:vgg:w.pth'", "vgg16"],
        ),
        ({"name": "x1", "features": {"where": ["a > 1"]}}, ["features.where", "'a'", "sharpness"]),
        ({"name": "x1", "features": {"where": ["sharpness"]}}, ["features.where = 'sharpness'", "sharpness > 0.01"]),
        ({"name": "x1", "features": {"weight_by": "beauty"}}, ["features.weight_by", "'beauty'", "contrast"]),
        *(
            ({"name": "x1", "source": {"timezone": zone}}, [f"source.timezone = {zone!r}", "Europe/Berlin"])
            for zone in ("Mars/Olympus", "", "Europe", "../UTC", "zone.tab", "x" * 300)
        ),
        ({"name": "x1", "schedule": {"ingest_cron": "daily"}}, ["schedule.ingest_cron = 'daily'", "five fields"]),
        ({"name": "x1", "schedule": {"train_cron": "0 24 * * *"}}, ["schedule.train_cron", "'24' as hour", "0 to 23"]),
        *(
            ({"name": "x1", "schedule": {"start_date": day}}, [f"schedule.start_date = {day!r}", "YYYY-MM-DD"])
            for day in ("2024-02-30", "20240101", "2024-W01-1", "yesterday", "")
        ),
        ({"name": "x1", "split": {"val_share": 0.5, "test_share": 0.5}}, ["split.val_share", "leave"]),
    ],
)
def test_a_wrong_key_is_named(table: dict[str, object], words: list[str]) -> None:
    with pytest.raises(RecipeError) as caught:
        recipes.from_dict(table)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_an_integer_serves_as_a_float() -> None:
    assert recipes.from_dict({"name": "x1", "schedule": {"cool_down_s": 3}}).schedule.cool_down_s == 3.0


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "broken.toml"
    path.write_text("[training\n")
    with pytest.raises(RecipeError, match=str(path)):
        recipes.load(path)


def test_a_broken_file_stops_its_own_recipe_only(tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text("[training\n")
    (tmp_path / "good.toml").write_text('[source]\nuri = "x"\n')
    assert recipes.get("good", tmp_path).name == "good"
    assert recipes.find("other", tmp_path) is None
    for name in ("bad", "other"):
        with pytest.raises(RecipeError, match=r"bad\.toml"):
            recipes.get(name, tmp_path)
    with pytest.raises(RecipeError, match="there are: good"):
        recipes.get("other", tmp_path)


def test_a_broken_file_hides_the_one_that_it_would_replace(tmp_path: Path) -> None:
    (tmp_path / "digits.toml").write_text("[training\n")
    with pytest.raises(RecipeError, match=str(tmp_path)):
        recipes.get("digits", SHIPPED, tmp_path)


def test_overrides_are_checked_like_the_file() -> None:
    recipe = recipes.Recipe(name="x1")
    changed = recipes.override(recipe, {"training.epochs": 3})
    assert changed.training.epochs == 3
    assert changed.digest != recipe.digest
    with pytest.raises(RecipeError, match="nothing"):
        recipes.override(recipe, {"nothing.epochs": 3})
    with pytest.raises(RecipeError, match=r"features\.where"):
        recipes.override(recipe, {"features.where": ["a > 1"]})
    published = recipes.override(recipe, {"model.backbone": "resnet18", "model.weights": "torchvision"})
    with pytest.raises(RecipeError, match=r"model\.weights = 'torchvision'"):  # as the trigger form would change it
        recipes.override(published, {"model.backbone": "small"})


def test_round_trip_and_digest_do_not_depend_on_order() -> None:
    recipe = recipes.from_dict({"name": "x1", "features": {"where": ["size_px > 1"]}})
    assert recipes.from_dict(recipes.to_dict(recipe)) == recipe
    again = recipes.from_dict(dict(reversed(recipes.to_dict(recipe).items())))
    assert again.digest == recipe.digest


def test_the_form_shows_types_and_limits() -> None:
    fields = recipes.form_fields(recipes.Recipe(name="x1"))
    assert fields["training.epochs"]["type"] == "integer"
    assert fields["training.epochs"]["minimum"] == 1
    assert "small" in fields["model.backbone"]["enum"]
