"""Features of intervals in any order, and the training set that comes of them. Real Feast, real PostgreSQL."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feature_house import House
from small_datasets import Ingested, accepted, class_folders

from pipelines.core import datasets, manifest
from pipelines.core.embedding import HogColorV1
from pipelines.core.errors import NotFound, RecipeError
from pipelines.core.features import HOG_COLOR, STATISTICS, STATISTICS_VIEW, entity_key, partition_key
from pipelines.core.preprocessing import preprocess, spec_of
from pipelines.core.recipe import Features, Preprocessing
from pipelines.core.values import Materialized
from pipelines.settings import Settings
from pipelines.steps.training_set import training_set


@pytest.fixture
def house(postgres_settings: Settings, tmp_path: Path) -> House:
    return House(postgres_settings, tmp_path)


@pytest.fixture
def training(house: House) -> Callable[[Features], pa.Table]:
    def build(features: Features) -> pa.Table:
        snapshotted, path = house.snapshot()
        out = house.work / f"training-{len(list(house.work.glob('*')))}"
        out.mkdir()
        training_set(
            snapshot=snapshotted, snapshot_manifest=path, features=features, repository=house.repository, out=out
        )
        return pq.read_table(out / "training_set.parquet")

    return build


def keys_of(found: Ingested) -> set[bytes]:
    rows = manifest.read(found.folder / "manifest.parquet")
    return {entity_key(image_id) for image_id in rows["image_id"].to_pylist()}


def test_an_interval_is_in_both_stores_and_again_changes_nothing(house: House) -> None:
    class_folders(house.data / "dt=2024-01-01", {"red": 5, "blue": 4})
    found = house.ingest("2024-01-01")
    result = house.materialize(found)
    assert result == Materialized(interval="2024-01-01", num_rows=9, views=(STATISTICS_VIEW, HOG_COLOR.name))
    assert house.facts["num_rows"] == 9
    assert house.facts["rows_per_s"] > 0
    before = house.stored()
    assert set(before) == keys_of(found)
    assert {row[0] for row in before.values()} == {datetime(2024, 1, 1, tzinfo=UTC)}
    offline = house.storage.read(partition_key(house.name, HOG_COLOR.name, "2024-01-01"))
    house.materialize(found)
    assert house.stored() == before, "created when it was computed, not when it was loaded again"
    assert house.storage.read(partition_key(house.name, HOG_COLOR.name, "2024-01-01")) == offline


def test_the_nearest_of_a_stored_image_is_itself(house: House) -> None:
    class_folders(house.data / "dt=2024-01-01", {"red": 5, "blue": 4})
    found = house.run("2024-01-01")
    row = manifest.read(found.folder / "manifest.parquet").slice(3, 1).to_pylist()[0]
    spec = spec_of(Preprocessing(height=32, width=32, fit="squash"))
    pixels = preprocess(house.storage.read(datasets.blob_key(row["image_id"])), spec)
    best = house.online.nearest(HOG_COLOR.name, HogColorV1().embed(np.stack([pixels]))[0], 2)
    assert best[0].image_id == row["image_id"]
    assert best[0].similarity == pytest.approx(1, abs=1e-6)
    assert best[1].similarity < 0.999


def test_an_interval_that_shrinks_takes_its_images_along_but_not_those_of_others(house: House) -> None:
    class_folders(house.data / "dt=2024-01-01", {"red": 4, "blue": 4})
    class_folders(house.data / "dt=2024-01-02", {"red": 3}, first_seed=5000)
    (house.data / "dt=2024-01-02" / "red" / "shared.png").write_bytes(
        sorted((house.data / "dt=2024-01-01" / "red").iterdir())[0].read_bytes()
    )
    first = house.run("2024-01-01")
    second = house.run("2024-01-02")
    assert set(house.stored()) == keys_of(first) | keys_of(second)
    shared = keys_of(first) & keys_of(second)
    assert len(shared) == 1
    assert {house.stored()[key][0].day for key in shared} == {2}
    (house.data / "dt=2024-01-02" / "red" / "shared.png").unlink()
    (house.data / "dt=2024-01-02" / "red" / "05000.png").unlink()
    again = house.run("2024-01-02")
    assert set(house.stored()) == keys_of(first) | keys_of(again)
    assert {house.stored()[key][0].day for key in shared} == {1}, "the first day still holds it"
    assert set(house.stored(STATISTICS_VIEW)) == set(house.stored())
    shutil.rmtree(house.data / "dt=2024-01-02")
    house.run("2024-01-02")
    assert set(house.stored()) == set(house.stored(STATISTICS_VIEW)) == keys_of(first), "a day that was deleted"


@pytest.mark.parametrize("order", [(1, 2), (2, 1)])
def test_a_withdrawn_image_is_gone_whichever_interval_comes_first(house: House, order: tuple[int, int]) -> None:
    folder = class_folders(house.data / "images", {"red": 3, "blue": 3})
    uris = sorted(str(path) for path in folder.rglob("*.png"))
    lines = [f"{uri},{Path(uri).parent.name},2024-01-01,false" for uri in uris]
    withdrawn = Path(uris[0])
    lines.append(f"{withdrawn},,2024-01-02,true")
    table = house.data / "table.csv"
    table.write_text("\n".join(["uri,label,event_time,tombstone", *lines]) + "\n")
    house.data = table
    for day in order:
        house.run(f"2024-01-0{day}")
    gone = entity_key(hashlib.sha256(withdrawn.read_bytes()).hexdigest())
    assert len(house.stored()) == 5
    assert gone not in house.stored()
    assert gone not in house.stored(STATISTICS_VIEW)


def test_the_training_set_is_filtered_and_weighted_in_training_only(
    house: House, training: Callable[[Features], pa.Table]
) -> None:
    class_folders(house.data / "dt=2024-01-01", {"red": 20, "blue": 20})
    class_folders(house.data / "dt=2024-01-02", {"red": 10, "blue": 10}, first_seed=500)
    house.run("2024-01-02")
    house.run("2024-01-01")
    whole = training(Features())
    assert whole.num_rows == 60
    assert set(whole["weight"].to_pylist()) == {1.0}
    assert whole["image_id"].to_pylist() == sorted(whole["image_id"].to_pylist())
    for day in ("2024-01-01", "2024-01-02"):
        key = partition_key(house.name, STATISTICS_VIEW, day)
        offline = pq.read_table(house.storage.local(key, house.work), partitioning=None)
        rows = whole.filter(pa.compute.is_in(whole["image_id"], value_set=offline["image_id"]))
        for name in STATISTICS:
            assert rows[name].to_pylist() == offline.sort_by("image_id")[name].to_pylist()
    train = whole.filter(pa.compute.equal(whole["split"], "train"))
    limit = float(np.median(train["brightness"].to_numpy()))
    fewer = training(Features(where=(f"brightness > {limit!r}", "size_px >= 1"), weight_by="contrast"))
    kept = fewer.filter(pa.compute.equal(fewer["split"], "train"))
    assert kept.num_rows == (train["brightness"].to_numpy() > limit).sum()
    assert fewer.num_rows - kept.num_rows == whole.num_rows - train.num_rows, "val and test stay whole"
    contrast = kept["contrast"].to_numpy().astype(np.float64)
    np.testing.assert_allclose(kept["weight"].to_numpy(), contrast / contrast.mean(), rtol=1e-5)
    rest = fewer.filter(pa.compute.not_equal(fewer["split"], "train"))
    assert set(rest["weight"].to_pylist()) == {1.0}


def test_what_cannot_be_a_training_set_says_why(house: House, training: Callable[[Features], pa.Table]) -> None:
    class_folders(house.data / "dt=2024-01-01", {"red": 20, "blue": 20})
    found = house.run("2024-01-01")
    with pytest.raises(RecipeError, match=r"features\.where.*no training image of blue, red passes"):
        training(Features(where=("size_px > 1e9",)))
    with pytest.raises(RecipeError, match=r"features\.weight_by: no feature 'beauty'"):
        training(Features(weight_by="beauty"))
    # A second day that was accepted without its features.
    class_folders(house.data / "dt=2024-01-02", {"red": 3}, first_seed=900)
    later = replace(house.ingest("2024-01-02"), recipe=found.recipe)
    accepted(later, house.storage, house.work)
    with pytest.raises(NotFound, match=r"3 of 43 images have no features.*ingest interval 2024-01-02 again"):
        training(Features())
