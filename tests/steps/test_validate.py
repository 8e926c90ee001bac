"""What stops an interval, what only warns, and what the data docs show. The real Great Expectations checks."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from small_datasets import COLOURS, Ingested, accepted, class_folders, ingested, picture, save

from pipelines.adapters.expectations import GreatExpectations
from pipelines.core import datasets
from pipelines.core.errors import GateRejected
from pipelines.core.recipe import Recipe, Validation
from pipelines.core.storage import Storage, open_storage
from pipelines.core.values import Validated
from pipelines.steps.validate import validate

COUNTS = {"red": 6, "green": 6, "blue": 6}


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return open_storage(str(tmp_path / "store"))


@pytest.fixture
def work(tmp_path: Path) -> Path:
    (tmp_path / "work").mkdir()
    return tmp_path / "work"


def check(found: Ingested, storage: Storage, work: Path, run: str = "ingest_images/r1") -> Validated:
    out = work / f"validate-{len(list(work.glob('*')))}"
    out.mkdir()
    head = datasets.read_head(storage, found.recipe.name).intervals
    result = validate(
        recipe=found.recipe,
        run=run,
        assembled=found.assembled,
        folder=found.folder,
        accepted={interval: digest for interval, digest in head.items() if interval != found.assembled.interval},
        storage=storage,
        expectations=GreatExpectations(),
        out=out,
        cache=work / "cache",
    )
    assert (out / "docs" / "index.html").is_file()
    return result


def recipe(**options: object) -> Recipe:
    return Recipe(name="colours", validation=replace(Validation(), **options))


def named(result: Validated) -> dict[str, str]:
    return {one.expectation.partition(": ")[2]: one.observed for one in result.findings}


def test_good_images_pass_and_their_page_needs_no_network(tmp_path: Path, storage: Storage, work: Path) -> None:
    data = class_folders(tmp_path / "data", COUNTS)
    result = check(ingested(recipe(), data, "static", storage, work), storage, work)
    assert result.findings == ()
    assert result.num_expectations >= 15
    page = storage.read("docs/colours/ingest_images_r1/index.html").decode()
    assert "all expectations met" in page
    assert not re.findall(r"(?:src|href)\s*=\s*['\"]?\s*(?:https?:|//)|@import|url\(", page)
    assert storage.exists("docs/colours/ingest_images_r1/validation.json")
    assert "ingest_images_r1/index.html" in storage.read("docs/index.html").decode()


def test_a_blocking_finding_parks_the_interval_and_says_everything(
    tmp_path: Path, storage: Storage, work: Path
) -> None:
    data = class_folders(tmp_path / "data", {**COUNTS, "blue": 1})
    save(data / "red" / "tiny.png", picture(9, side=3))
    (data / "red" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    with pytest.raises(GateRejected) as caught:
        check(ingested(recipe(max_quarantine_share=0.02), data, "static", storage, work), storage, work)
    text = str(caught.value)
    assert "interval static is parked" in text
    assert "expect_column_values_to_be_between: No image is too small: observed smallest 3 px" in text
    assert "allowed shorter side at least 4 px (validation.min_side_px)" in text
    assert str(data / "red" / "tiny.png") in text
    assert "1 of 15 files" in text
    assert str(data / "red" / "broken.png") in text
    assert "blue 1" in text
    (parked,) = datasets.list_parked(storage, "colours")
    assert parked.interval == "static"
    assert str(data / "red" / "tiny.png") in parked.examples
    page = storage.read("docs/colours/ingest_images_r1/index.html").decode()
    assert "rejected: 3 blocking" in page
    assert "data:image/jpeg;base64," in page


def test_unknown_labels_block_where_the_recipe_names_the_known_ones(
    tmp_path: Path, storage: Storage, work: Path
) -> None:
    data = class_folders(tmp_path / "data", COUNTS)
    found = ingested(recipe(known_labels=("red", "green", "yellow")), data, "static", storage, work)
    with pytest.raises(GateRejected, match="Labels are known: observed 6 of 18: blue") as caught:
        check(found, storage, work)
    assert "yellow 0" in str(caught.value), "a known class without images has too few"


def test_the_accepted_set_is_what_an_interval_is_compared_with(tmp_path: Path, storage: Storage, work: Path) -> None:
    data = tmp_path / "data"
    class_folders(data / "dt=2024-01-01", COUNTS)
    first = ingested(recipe(), data, "2024-01-01", storage, work)
    assert check(first, storage, work).findings == ()
    accepted(first, storage, work)
    # The next day: only one class, much brighter, a class never seen, and an image that changed its class.
    for number in range(8):
        bright = picture(500 + number).point(lambda level: 235 + level // 16)
        save(data / "dt=2024-01-02" / "red" / f"{number}.png", bright)
    for number in range(2):
        save(data / "dt=2024-01-02" / "violet" / f"{number}.png", picture(600 + number))
    moved = sorted((data / "dt=2024-01-01" / "blue").iterdir())[0]
    shutil.copy(moved, data / "dt=2024-01-02" / "red" / "moved.png")
    second = ingested(recipe(max_class_share_shift=0.4), data, "2024-01-02", storage, work)
    findings = named(check(second, storage, work))
    assert findings.pop("No accepted image changed its class").endswith("blue → red")
    assert findings.pop("No class is new to the accepted set") == "1: violet"
    assert "red 0.48" in findings.pop("The interval's classes are as frequent as those of the accepted set")
    assert "brightness" in findings.pop("Statistics are those of the accepted set")
    assert findings == {}
    # A head with the interval in it gives the same answer: the interval is compared with the others.
    accepted(second, storage, work)
    assert "No class is new to the accepted set" in named(check(second, storage, work))


def test_a_picture_in_two_of_the_sources_splits_warns_or_blocks(tmp_path: Path, storage: Storage, work: Path) -> None:
    data = tmp_path / "data"
    class_folders(data / "train", COUNTS)
    class_folders(data / "test", {"red": 2, "green": 2, "blue": 2}, first_seed=500)
    twin = sorted((data / "train" / "red").iterdir())[0]
    shutil.copy(twin, data / "test" / "red" / "twin.png")
    near = picture(7000, COLOURS["green"], 64)
    save(data / "train" / "green" / "near.png", near)
    near.save(data / "test" / "green" / "near.jpg", quality=92)
    found = ingested(recipe(), data, "static", storage, work)
    result = check(found, storage, work)
    by_title = {one.expectation.partition(": ")[2]: one for one in result.findings}
    exact = by_title["No file is in two of the source's splits"]
    assert exact.observed == "1: test/train 1"
    assert set(exact.examples) == {str(twin), str(data / "test" / "red" / "twin.png")}
    close = next(one for title, one in by_title.items() if title.startswith("No near-duplicates"))
    assert {str(data / "train" / "green" / "near.png"), str(data / "test" / "green" / "near.jpg")} <= set(
        close.examples
    )
    strict = replace(found, recipe=recipe(block_cross_split_duplicates=True))
    with pytest.raises(GateRejected, match=r"block_cross_split_duplicates.*twin\.png"):
        check(strict, storage, work)


def test_one_image_in_two_classes_is_told_by_name(tmp_path: Path, storage: Storage, work: Path) -> None:
    data = class_folders(tmp_path / "data", COUNTS)
    shutil.copy(sorted((data / "red").iterdir())[0], data / "blue" / "again.png")
    found = ingested(recipe(max_quarantine_share=0.2), data, "static", storage, work)
    observed = named(check(found, storage, work))["No image is in two classes"]
    assert "again.png" in observed
    assert "red" in observed


def test_a_day_without_images_is_no_fault(tmp_path: Path, storage: Storage, work: Path) -> None:
    class_folders(tmp_path / "data" / "dt=2024-01-01", COUNTS)
    found = ingested(recipe(), tmp_path / "data", "2024-01-05", storage, work)
    assert check(found, storage, work).findings == ()
