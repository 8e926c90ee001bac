"""evaluate, predict, models and trace, on a registered model and on a package folder."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from example_packages import COLOURS, coloured, write_package
from logged_predictions import record, spooled

from pipelines.adapters import database
from pipelines.adapters.tracking import MlflowRegistry
from pipelines.cli.feature_stores import open_embedder
from pipelines.cli.main import main
from pipelines.core import manifest, model_package
from pipelines.core.datasets import snapshot_key
from pipelines.core.errors import NotFound
from pipelines.core.model_package import ModelPackage
from pipelines.core.package_store import lineage_key
from pipelines.core.prediction_collection import collect
from pipelines.core.recipe import Gate, Recipe, Source, Training
from pipelines.core.storage import open_storage
from pipelines.core.values import Compared, Interval, Trained
from pipelines.settings import Settings
from pipelines.steps.register import Candidate, register

SNAPSHOT = "5" * 64
RECIPE = Recipe(name="colours", source=Source(uri="/data/colours"), training=Training(epochs=5))


@pytest.fixture
def darkroom(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Runs the command in this process; exit code, standard output and error."""

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["darkroom", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main()
        captured = capsys.readouterr()
        return int(caught.value.code or 0), captured.out, captured.err

    return run


@pytest.fixture
def package(tmp_path: Path) -> ModelPackage:
    return write_package(tmp_path / "package")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Class folders: 4 images a class, one of the red ones blue, a class that no model knows, a file that is none."""
    folder = tmp_path / "photos"
    for name in COLOURS:
        (folder / name).mkdir(parents=True)
        for seed in range(4):
            (folder / name / f"{seed}.png").write_bytes(coloured(name, seed))
    (folder / "red" / "3.png").write_bytes(coloured("blue", 9))
    (folder / "purple").mkdir()
    (folder / "purple" / "0.png").write_bytes(coloured("red", 5))
    (folder / "green" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno more")
    return folder


def test_evaluate_a_package_folder(
    darkroom: Callable[..., tuple[int, str, str]], home_settings: Settings, package: ModelPackage, photos: Path
) -> None:
    """Without a platform: no database is asked."""
    code, out, _ = darkroom("evaluate", package.folder, "--data", photos, "--json")
    found = json.loads(out)
    assert code == 0
    assert found["num_images"] == 12
    assert found["accuracy"] == pytest.approx(11 / 12)
    assert found["accuracy_low"] < found["accuracy"] < found["accuracy_high"]
    assert found["unknown_classes"] == {"purple": 1}
    assert [Path(one["uri"]).name for one in found["refused"]] == ["broken.png"]
    assert (found["model"], found["version"], found["package_digest"]) == ("colours", None, package.digest)


def test_evaluate_names_what_it_leaves_out(
    darkroom: Callable[..., tuple[int, str, str]], home_settings: Settings, package: ModelPackage, photos: Path
) -> None:
    code, out, error = darkroom("evaluate", package.folder, "--data", photos)
    assert code == 0
    assert "accuracy 91.67%" in out
    assert "does not know class purple: 1 images" in error
    assert "broken.png" in error


def test_evaluate_one_split(
    darkroom: Callable[..., tuple[int, str, str]], home_settings: Settings, package: ModelPackage, tmp_path: Path
) -> None:
    for split, num_images in (("train", 3), ("test", 2)):
        for name in COLOURS:
            folder = tmp_path / "splits" / split / name
            folder.mkdir(parents=True)
            for seed in range(num_images):
                (folder / f"{seed}.png").write_bytes(coloured(name, seed))
    data = tmp_path / "splits"
    assert json.loads(darkroom("evaluate", package.folder, "--data", data, "--json")[1])["num_images"] == 15
    only_test = darkroom("evaluate", package.folder, "--data", data, "--split", "test", "--json")
    assert json.loads(only_test[1])["num_images"] == 6


def test_evaluate_says_what_is_wrong(
    darkroom: Callable[..., tuple[int, str, str]], home_settings: Settings, package: ModelPackage, tmp_path: Path
) -> None:
    (tmp_path / "other" / "cats").mkdir(parents=True)
    (tmp_path / "other" / "cats" / "a.png").write_bytes(coloured("red"))
    (tmp_path / "other" / "dogs").mkdir()
    (tmp_path / "other" / "dogs" / "a.png").write_bytes(coloured("red", 1))
    code, _, error = darkroom("evaluate", package.folder, "--data", tmp_path / "other")
    assert (code, "classes there: cats, dogs; the model's: red, green, blue" in error) == (2, True)
    code, _, error = darkroom("evaluate", package.folder, "--data", tmp_path / "nowhere")
    assert (code, "no such file or folder" in error) == (2, True)
    code, _, error = darkroom("evaluate", tmp_path / "other", "--data", tmp_path / "other")
    assert (code, "no model package there" in error) == (2, True)
    code, _, error = darkroom("evaluate", "0" * 64, "--data", tmp_path / "other")
    assert (code, "no such model package" in error) == (2, True)


def test_predict(
    darkroom: Callable[..., tuple[int, str, str]], home_settings: Settings, package: ModelPackage, photos: Path
) -> None:
    code, out, _ = darkroom("predict", package.folder, photos / "blue" / "0.png", photos / "red" / "0.png", "--json")
    answers = json.loads(out)["predictions"]
    assert code == 0
    assert [answer["classes"][0]["class_name"] for answer in answers] == ["blue", "red"]
    assert sum(one["probability"] for one in answers[0]["classes"]) == pytest.approx(1, abs=1e-5)
    code, out, error = darkroom("predict", package.folder, photos / "green" / "broken.png", photos / "red" / "1.png")
    assert code == 2
    assert "red 99." in out
    assert "1 of 2 files refused" in error


@pytest.fixture(scope="module")
def registered(postgres_settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Two versions of `colours`, the first the champion, registered by the step."""
    settings, folder = postgres_settings, tmp_path_factory.mktemp("registered")
    database.migrate(settings.database_url("darkroom"))
    storage, registry = open_storage(settings.store_uri), MlflowRegistry(settings)
    rows = []
    for number, split in enumerate(["train", "train", "val", "test", "excluded"]):
        data = coloured("red", number)
        rows.append(
            {
                "image_id": hashlib.sha256(data).hexdigest(),
                "label": "red",
                "split": split,
                "event_timestamp": datetime(2024, 1, 1, tzinfo=UTC),
                "source_uri": f"/data/colours/red/{number}.png",
                "group_id": hashlib.sha256(data).hexdigest(),
                "interval": "static",
            }
        )
    manifest.write(folder / "manifest.parquet", pa.Table.from_pylist(rows, schema=manifest.SNAPSHOT))
    storage.write(snapshot_key(SNAPSHOT), (folder / "manifest.parquet").read_bytes())
    # A filter of the recipe left the second training image out.
    used = [{"image_id": row["image_id"], "split": row["split"]} for row in (rows[0], rows[2], rows[3])]
    pq.write_table(pa.Table.from_pylist(used), folder / "training_set.parquet")
    (folder / "history.json").write_text(json.dumps([{"epoch": 1, "val_loss": 0.5}]))
    digests = []
    for number in (1, 2):
        bare = write_package(
            folder / f"bare-{number}", weights=number * np.eye(3, dtype=np.float32), snapshot_id=SNAPSHOT
        )
        evaluated = folder / f"evaluated-{number}"
        accuracy = {"accuracy": Interval(value=0.9, low=0.8, high=0.95)}
        digests.append(model_package.with_metrics(bare, evaluated / "package", accuracy, 60).digest)
        for name in ("confusion.png", "mistakes.png", "metrics.json"):
            (evaluated / name).write_text("{}")
        candidate = Candidate(
            evaluated=evaluated,
            training_set=folder / "training_set.parquet",
            history=folder / "history.json",
            trained=Trained(
                tracking_run_id="",
                epochs_run=1,
                best_epoch=1,
                val_accuracy=0.9,
                tta_accuracy=0.9,
                device="cpu",
                precision="fp32",
                strategy="resident",
                micro_batch=16,
            ),
            compared=Compared(verdict="better", accepted=True, reason="r", champion_version=None, num_images=60),
        )
        made = register(candidate, RECIPE, registry, storage)
        assert register(candidate, RECIPE, registry, storage) == made
        # Another recipe that ends in the same package does not rewrite how it was first made.
        lineage = lineage_key(made.package_digest, "recipe.json")
        first = storage.read(lineage)
        register(candidate, replace(RECIPE, gate=Gate(margin=0.123)), registry, storage)
        assert storage.read(lineage) == first
        assert (made.version, made.package_digest) == (number, digests[-1])
    registry.promote("colours", 1)
    return {"settings": settings, "digests": digests, "red": [row["image_id"] for row in rows]}


@pytest.fixture
def platform(registered: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setenv("DARKROOM_HOME", str(registered["settings"].home))
    monkeypatch.setenv("DARKROOM_DEFAULT_MODEL", "colours")
    return registered


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("colours", 1),
        ("colours@champion", 1),
        ("colours@challenger", 2),
        ("colours:2", 2),
        ("colours:v2", 2),
        ("2", 2),
        ("digest", 2),
        ("start of digest", 2),
    ],
)
def test_names_of_models(
    darkroom: Callable[..., tuple[int, str, str]], platform: dict[str, Any], photos: Path, text: str, number: int
) -> None:
    digest = platform["digests"][1]
    text = {"digest": digest, "start of digest": digest[:10]}.get(text, text)
    code, out, error = darkroom("predict", text, photos / "red" / "0.png", "--json")
    assert (code, error) == (0, "")
    assert json.loads(out)["package_digest"] == platform["digests"][number - 1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nothing", "nothing: no such model"),
        ("colours:9", "no version 9"),
        ("colours:new", "'new' is no version number"),
        ("colours@best", "colours has no best; colours:2 is its newest version"),
        ("ffffffffffff", "no registered version has this digest"),
    ],
)
def test_wrong_names_of_models(
    darkroom: Callable[..., tuple[int, str, str]], platform: dict[str, Any], photos: Path, text: str, message: str
) -> None:
    code, _, error = darkroom("predict", text, photos / "red" / "0.png")
    assert code == 2
    assert message in error


def test_models(darkroom: Callable[..., tuple[int, str, str]], platform: dict[str, Any]) -> None:
    code, out, _ = darkroom("models", "colours", "--json")
    rows = json.loads(out)
    assert code == 0
    assert [(row["version"], row["aliases"], row["deployed"]) for row in rows] == [
        (2, ["challenger"], False),
        (1, ["champion"], False),
    ]
    assert [rows[0][key] for key in ("accuracy", "accuracy_low", "accuracy_high")] == [0.9, 0.8, 0.95]
    assert rows[0]["package_digest"] == platform["digests"][1]
    assert "champion" in darkroom("models")[1]


def test_trace(darkroom: Callable[..., tuple[int, str, str]], platform: dict[str, Any]) -> None:
    code, out, _ = darkroom("trace", "colours:1", "--images", "--json")
    found = json.loads(out)
    assert code == 0
    assert (found["model"], found["version"], found["snapshot_id"]) == ("colours", 1, SNAPSHOT)
    assert (found["recipe"], found["code"], found["run"]) == ("1" * 64, "2" * 64, "train_classifier/test")
    assert found["recipe_keys"]["training"]["epochs"] == 5
    assert found["images"] == [
        {"source_uri": "/data/colours/red/0.png", "image_id": platform["red"][0], "label": "red"}
    ]
    by_digest = json.loads(darkroom("trace", platform["digests"][0], "--json")[1])
    assert by_digest == {key: value for key, value in found.items() if key not in ("images", "num_images")}
    assert "/data/colours/red/0.png" in darkroom("trace", "colours:1", "--images")[1]


def test_a_request_is_traced_by_the_prediction_log(
    darkroom: Callable[..., tuple[int, str, str]], platform: dict[str, Any]
) -> None:
    storage = open_storage(platform["settings"].store_uri)
    spooled(platform["settings"].home / "spool", [record(4, digest=platform["digests"][0])])
    collect(platform["settings"].home / "spool", storage)
    code, out, _ = darkroom("trace", "--request", "request-4", "--images", "--json")
    assert code == 0
    assert out == darkroom("trace", "colours:1", "--images", "--json")[1]
    code, _, error = darkroom("trace", "--request", "unknown")
    assert code == 2
    assert "'unknown' is not in the prediction log" in error
    for arguments in ([], ["colours:1", "--request", "request-4"]):
        assert "one of the two" in darkroom("trace", *arguments)[2]


def test_a_registered_package_embeds_and_an_unknown_one_is_named(registered: dict[str, Any]) -> None:
    settings = registered["settings"]
    storage = open_storage(settings.store_uri)
    embedder = open_embedder(settings, storage, f"package:{registered['digests'][0]}")
    assert embedder.embed(np.zeros((2, embedder.height, embedder.width, 3), np.uint8)).shape == (2, 3)
    with pytest.raises(NotFound, match="no registered package has this digest"):
        open_embedder(settings, storage, f"package:{'0' * 64}")
