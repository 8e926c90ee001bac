"""`darkroom run`'s parts that need no platform: the digits, names and recipes for a user's data, what is left to do."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from PIL import Image

from pipelines.adapters.orchestrator import DagRun, Task
from pipelines.cli.chain import data_recipe, graph
from pipelines.cli.chain.digits import DAYS, NUM_IMAGES, ensure_digits
from pipelines.cli.chain.overhead import overhead
from pipelines.cli.chain.report import fact
from pipelines.cli.chain.through_airflow import _groups
from pipelines.core import recipe as recipes
from pipelines.core.errors import SourceError, UserError
from pipelines.core.recipe import Source
from pipelines.core.runs import Reference
from pipelines.core.sources import list_intervals
from pipelines.settings import Settings

_DIGITS_SHA256 = "0728c485ca172f63bf2e56c89d6f0e4c7418f49fa6d19ff0d6db5035b6ae85dc"


# --- the digits ----------------------------------------------------------------------------------------------------


def test_the_digits_are_the_same_bytes_every_time(tmp_path: Path) -> None:
    folder = ensure_digits(tmp_path)
    files = sorted(folder.rglob("*.png"))
    assert len(files) == NUM_IMAGES
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.read_bytes())
    assert digest.hexdigest() == _DIGITS_SHA256
    assert ensure_digits(tmp_path) == folder
    assert [path.name for path in folder.parent.iterdir()] == ["digits"]  # nothing half-written is left


def test_the_shipped_recipe_finds_the_five_days(home_settings: Settings) -> None:
    ensure_digits(home_settings.home)
    recipe = recipes.get("digits", *home_settings.recipe_folders)
    assert recipe.source.dated
    assert recipe.schedule.start_date == DAYS[0]
    assert list_intervals(recipe.source, home=home_settings.home) == list(DAYS)


# --- a recipe for a user's data --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("uri", "name"),
    [
        ("/data/Street Signs", "street-signs"),
        ("/data/flowers/", "flowers"),
        ("/data/Leaves_v2.tar.gz", "leaves-v2"),
        ("s3://bucket/2024/parts", "parts"),
        ("s3://bucket/2024", "data-2024"),
        ("/data/" + "x" * 60, "x" * 40),
    ],
)
def test_names_come_from_the_folder(uri: str, name: str) -> None:
    assert data_recipe.name_of(uri) == name
    assert recipes.NAME_PATTERN.fullmatch(name)


def test_a_folder_without_a_usable_name_asks_for_one() -> None:
    with pytest.raises(UserError, match="--name"):
        data_recipe.name_of("/data/写真")


def _images(folder: Path, classes: tuple[str, ...], *, side: int, count: int = 3) -> Path:
    for label in classes:
        for number in range(count):
            path = folder / label / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (side, side + 7), (number, 20, 30)).save(path)
    return folder


def test_photographs_get_random_crops(home_settings: Settings, tmp_path: Path) -> None:
    folder = _images(tmp_path / 'My "Photos"', ("cat", "dog"), side=300)
    recipe = data_recipe.ensure_recipe(home_settings, str(folder))
    assert recipe.name == "my-photos"
    assert recipe.source == Source(uri=str(folder), dated=False)
    assert (recipe.model.backbone, recipe.preprocessing.height) == ("airbench", 64)
    assert (recipe.augmentation.crop, recipe.augmentation.flip) == ("resized", "alternating")
    assert (recipe.training.optimizer, recipe.training.batch_size) == ("muon", 64)
    assert data_recipe.ensure_recipe(home_settings, str(folder)) == recipe


def test_a_template_of_that_name_is_filled_in(home_settings: Settings, tmp_path: Path) -> None:
    folder = _images(tmp_path / "anything", ("cat", "dog"), side=32)
    recipe = data_recipe.ensure_recipe(home_settings, str(folder), "cifar10")
    assert recipe.source == Source(uri=str(folder), dated=False)
    assert (recipe.model.backbone, recipe.training.optimizer) == ("airbench", "muon")
    assert data_recipe.ensure_recipe(home_settings, str(folder), "cifar10") == recipe


_TEMPLATE = """
[source] # whatever images there are
timezone = "Europe/Berlin"
dated = false

[model]
backbone = "resnet18"

[schedule]
cool_down_s = 5
start_date = "2000-01-01"
"""


def test_a_template_takes_the_first_day_and_keeps_what_its_own_tables_say(
    home_settings: Settings, tmp_path: Path
) -> None:
    for day in ("2023-05-02", "2023-05-01"):
        _images(tmp_path / "days" / f"dt={day}", ("cat", "dog"), side=28)
    (home_settings.home / "recipes").mkdir(parents=True, exist_ok=True)
    (home_settings.home / "recipes" / "berlin.toml").write_text(_TEMPLATE)
    for name in ("cifar10", "berlin"):
        recipe = data_recipe.ensure_recipe(home_settings, str(tmp_path / "days"), name)
        assert (recipe.source.uri, recipe.source.dated) == (str(tmp_path / "days"), True)
        assert recipe.schedule.start_date == "2023-05-01"
    assert (recipe.source.timezone, recipe.schedule.cool_down_s) == ("Europe/Berlin", 5)
    assert recipe.model.backbone == "resnet18"


def test_a_template_whose_source_is_no_table_says_how_to_write_it(home_settings: Settings, tmp_path: Path) -> None:
    (home_settings.home / "recipes").mkdir(parents=True, exist_ok=True)
    (home_settings.home / "recipes" / "inline.toml").write_text('source = { timezone = "UTC" }\n')
    with pytest.raises(UserError, match=r"inline\.toml: .*\[source\]"):
        data_recipe.ensure_recipe(home_settings, str(_images(tmp_path / "x", ("a", "b"), side=16)), "inline")


def test_small_dated_glyphs_are_not_mirrored(home_settings: Settings, tmp_path: Path) -> None:
    for day in ("2023-05-01", "2023-05-02"):
        _images(tmp_path / "glyphs" / f"dt={day}", ("a", "b"), side=28)
    recipe = data_recipe.ensure_recipe(home_settings, str(tmp_path / "glyphs"))
    assert recipe.source.dated
    assert recipe.schedule.start_date == "2023-05-01"
    assert (recipe.model.backbone, recipe.preprocessing.width) == ("airbench", 32)
    assert (recipe.augmentation.crop, recipe.augmentation.flip, recipe.evaluation.tta) == ("shift", "none", "none")
    assert recipe.training.epochs == 40  # few images: the upper bound


def test_an_edited_recipe_is_kept_and_another_folder_of_that_name_gets_a_name_of_its_own(
    home_settings: Settings, tmp_path: Path
) -> None:
    data_recipe.ensure_recipe(home_settings, str(_images(tmp_path / "parts", ("a", "b"), side=16)))
    path = home_settings.home / "recipes" / "parts.toml"
    path.write_text(path.read_text().replace("epochs = 40", "epochs = 7"))
    assert data_recipe.ensure_recipe(home_settings, str(tmp_path / "parts")).training.epochs == 7
    other = _images(tmp_path / "elsewhere" / "parts", ("a", "b"), side=16)
    with pytest.raises(UserError, match=r"--name"):
        data_recipe.ensure_recipe(home_settings, str(other), "parts")
    own = data_recipe.ensure_recipe(home_settings, str(other))
    assert own.name.startswith("parts-")
    assert data_recipe.ensure_recipe(home_settings, str(other)) == own
    assert data_recipe.ensure_recipe(home_settings, str(other), "other-parts").name == "other-parts"
    with pytest.raises(UserError, match="digits"):
        data_recipe.ensure_recipe(home_settings, str(other), "digits")


def test_data_that_cannot_be_learned_is_refused_before_anything_is_written(
    home_settings: Settings, tmp_path: Path
) -> None:
    with pytest.raises(SourceError, match="no such"):
        data_recipe.ensure_recipe(home_settings, str(tmp_path / "nothing"))
    with pytest.raises(SourceError, match="one class only"):
        data_recipe.ensure_recipe(home_settings, str(_images(tmp_path / "single", ("only",), side=16)))
    (tmp_path / "texts" / "a").mkdir(parents=True)
    (tmp_path / "texts" / "a" / "x.png").write_text("no image")
    with pytest.raises(SourceError, match="no readable"):
        data_recipe.ensure_recipe(home_settings, str(tmp_path / "texts"))
    assert not (home_settings.home / "recipes").exists()


# --- what is left to do ----------------------------------------------------------------------------------------------


def test_one_backfill_covers_near_days_and_no_other_interval() -> None:
    today = datetime.now(UTC).date().isoformat()
    found = _groups(["static", "2024-01-03", "2024-01-01", "2024-03-01", today])
    assert found == [["2024-01-01", "2024-01-03"], ["2024-03-01"], [today], ["static"]]


def test_the_dags_carry_the_recipe_except_for_the_default(home_settings: Settings) -> None:
    assert graph.ingest_dag(home_settings, "digits") == "ingest_images"
    assert graph.train_dag(home_settings, "street-signs") == "train_classifier__street-signs"


# --- overhead and reports -------------------------------------------------------------------------------------------

_T0 = datetime(2026, 1, 1, tzinfo=UTC)


def _at(seconds: float) -> datetime:
    return _T0 + timedelta(seconds=seconds)


def _task(name: str, shard: int | None, began: float, ended: float) -> Task:
    return Task(
        task_id=name, shard=shard, state="success", try_number=1, max_tries=2,
        queued_at=None, started_at=_at(began), ended_at=_at(ended),
    )  # fmt: skip


def _reference(name: str, shard: int | None, began: float, process_s: float, function_s: float) -> Reference:
    return Reference(
        step=name, shard=shard, key="k", digest="d", reused=False, started_at=_at(began).isoformat(),
        finished_at=_at(began + process_s).isoformat(), function_s=function_s, process_s=process_s,
    )  # fmt: skip


def test_overhead_is_wall_time_less_functions_on_the_critical_path() -> None:
    run = DagRun(
        dag_id="d", run_id="r", run_type="backfill", state="success", interval="2024-01-01",
        queued_at=_at(-5), started_at=_at(0), ended_at=_at(10),
    )  # fmt: skip
    tasks = [_task("plan", None, 0.5, 2), _task("ingest", 0, 2.5, 4), _task("ingest", 1, 2.5, 9.5)]
    references = [
        _reference("plan", None, 0.7, 1, 0.5),
        _reference("ingest", 0, 2.7, 1.2, 1),
        _reference("ingest", 1, 2.7, 6.5, 6),
    ]
    found = overhead(run, tasks, references)
    assert found is not None
    assert (found.wall_s, found.function_s, found.num_tasks) == (10, 6.5, 2)
    assert found.per_task_s == pytest.approx((10 - 6.5) / 2)
    assert found.starting_s + found.loading_s == pytest.approx(10 - 6.5)


def test_the_line_of_a_step_tells_its_fact() -> None:
    shards = [{"shard": n, "num_images": 1000, "num_quarantined": n, "size_bytes": 1} for n in (0, 1)]
    assert fact("ingest", shards) == "2,000 images, 1 quarantined"
    assert fact("plan", [{"num_files": 1, "num_shards": 1}]) == "1 file in 1 shard"
    assert fact("settle", [{"wait_s": 0}]) == ""
