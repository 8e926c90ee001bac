"""`darkroom similar`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from feature_house import House
from small_datasets import class_folders, picture, save
from typer.testing import CliRunner

from pipelines.cli.app import app
from pipelines.core.errors import UserError
from pipelines.settings import Settings


@pytest.fixture
def house(postgres_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> House:
    house = House(postgres_settings, tmp_path)
    monkeypatch.setenv("DARKROOM_HOME", str(postgres_settings.home))
    monkeypatch.setenv("DARKROOM_STORE", house.storage.uri)
    recipes = postgres_settings.home / "recipes"
    recipes.mkdir(exist_ok=True)
    (recipes / f"{house.name}.toml").write_text(f'[source]\nuri = "{house.data}"\n')
    class_folders(house.data / "dt=2024-01-01", {"red": 5, "blue": 5})
    house.run("2024-01-01")
    return house


def test_the_nearest_stored_images_with_their_classes_and_sources(house: House, tmp_path: Path) -> None:
    asked = sorted((house.data / "dt=2024-01-01" / "blue").iterdir())[2]
    done = CliRunner().invoke(app, ["similar", str(asked), "--dataset", house.name, "--top", "3", "--json"])
    assert done.exit_code == 0, done.output
    rows = json.loads(done.stdout)
    assert len(rows) == 3
    assert (rows[0]["label"], rows[0]["source_uri"]) == ("blue", str(asked))
    assert rows[0]["similarity"] == pytest.approx(1, abs=1e-5)
    assert [row["similarity"] for row in rows] == sorted((row["similarity"] for row in rows), reverse=True)
    assert Path(rows[0]["path"]).read_bytes() == asked.read_bytes()
    table = CliRunner().invoke(app, ["similar", str(asked), "--dataset", house.name])
    assert "blue" in table.stdout
    assert "2024-01-01" in table.stdout
    # What cannot be answered says why.
    text = save(tmp_path / "other" / "image.png", picture(1))
    text.write_text("no image")
    for arguments, says in (
        ([str(tmp_path / "nowhere.png"), "-d", house.name], "No such file"),
        ([str(text), "-d", house.name], "not_an_image"),
        ([str(asked), "-d", "nothing"], "no such recipe; there are:"),
    ):
        failed = CliRunner().invoke(app, ["similar", *arguments])
        assert isinstance(failed.exception, UserError)
        assert says in str(failed.exception)
