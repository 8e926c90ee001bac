"""Somebody's images become a snapshot that a foreign model is proved and measured on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from small_datasets import class_folders, picture, save

from pipelines.core import manifest
from pipelines.core.datasets import STATIC, snapshot_key
from pipelines.core.errors import SourceError
from pipelines.core.recipe import Source, Split
from pipelines.core.sources import open_source
from pipelines.core.sources.undivided import Undivided
from pipelines.core.storage import LocalStorage
from pipelines.core.values import Snapshotted
from pipelines.steps.assemble import assemble
from pipelines.steps.gather import gather
from pipelines.steps.ingest import ingest
from pipelines.steps.plan import plan


def gathered(data: Path, work: Path) -> tuple[Snapshotted, list[dict[str, Any]]]:
    """Through the same steps as an import; the snapshot and its rows."""
    storage = LocalStorage(work / "store")
    folders = {name: work / name for name in ("plan", "ingest", "assemble", "snapshot")}
    for folder in folders.values():
        folder.mkdir(parents=True)
    source = Undivided(open_source(Source(uri=str(data)), home=work))
    planned = plan(source, STATIC, folders["plan"])
    ingest(folders["plan"], 0, storage, folders["ingest"], cache=work / "cache", endpoint_url=None)
    assemble(planned, [folders["ingest"]], folders["assemble"])
    found = gather(folders["assemble"], "x1", Split(), storage, folders["snapshot"])
    assert storage.exists(snapshot_key(found.snapshot_id))
    return found, manifest.read(folders["snapshot"] / "manifest.parquet").to_pylist()


def test_nothing_is_trained_on_and_most_judges(tmp_path: Path) -> None:
    found, _ = gathered(class_folders(tmp_path / "data", {"red": 40, "blue": 40}), tmp_path / "work")
    assert found.class_names == ("blue", "red")
    counts = found.split_counts
    assert (counts["train"], counts["val"] + counts["test"]) == (0, 80)
    assert 0 < counts["val"] < 30


def test_images_in_no_class_folder_have_no_label(tmp_path: Path) -> None:
    for seed in range(6):
        save(tmp_path / "data" / f"{seed}.png", picture(seed))
    found, rows = gathered(tmp_path / "data", tmp_path / "work")
    assert (found.class_names, found.num_images) == ((), 6)
    assert {row["label"] for row in rows} == {None}


def test_images_beside_class_folders_are_taken_too(tmp_path: Path) -> None:
    data = class_folders(tmp_path / "data", {"red": 3, "blue": 3})
    save(data / "beside.png", picture(77))
    _, rows = gathered(data, tmp_path / "work")
    assert sorted(str(row["label"]) for row in rows) == ["None", *["blue"] * 3, *["red"] * 3]


def test_days_do_not_matter(tmp_path: Path) -> None:
    for day, seed in (("2024-01-01", 0), ("2024-01-02", 50)):
        class_folders(tmp_path / "data" / f"dt={day}", {"red": 2, "blue": 2}, first_seed=seed)
    assert gathered(tmp_path / "data", tmp_path / "work")[0].num_images == 8


def test_what_the_source_calls_training_images_judges_nothing(tmp_path: Path) -> None:
    for seed, split in enumerate(("train", "val", "test")):
        class_folders(tmp_path / "data" / split, {"red": 4, "blue": 4}, first_seed=100 * seed)
    found, rows = gathered(tmp_path / "data", tmp_path / "work")
    assert found.split_counts == {"train": 0, "val": 8, "test": 8, "excluded": 8}
    assert {row["split"] for row in rows if row["source_split"] == "train"} == {"excluded"}
    assert any("8 images left out: its source calls it a training image" in one for one in found.warnings)


def test_a_val_folder_alone_judges(tmp_path: Path) -> None:
    """As ImageNet's is: there is no test split to wait for."""
    found, _ = gathered(class_folders(tmp_path / "data" / "val", {"red": 40, "blue": 40}), tmp_path / "work")
    assert found.split_counts["test"] > 40


def test_a_folder_without_images(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "notes.txt").write_text("none here")
    with pytest.raises(SourceError, match="no readable image in the data"):
        gathered(tmp_path / "data", tmp_path / "work")
