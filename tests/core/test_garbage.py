"""gc frees what nothing refers to, and nothing else."""

from __future__ import annotations

import hashlib
import json
import os
import time
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pytest

from pipelines.core import datasets, garbage, manifest
from pipelines.core.garbage import Roots
from pipelines.core.recipe import Recipe
from pipelines.core.results import ResultStore
from pipelines.core.runs import Reference, RunFolder, RunId, RunRequest
from pipelines.core.storage import LocalStorage
from pipelines.core.values import Assembled

OLD = time.time() - 10 * 86_400
CUTOFF = time.time() - 86_400


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path / "store")


def age(storage: LocalStorage, prefix: str = "") -> None:
    for entry in storage.list(prefix):
        os.utime(storage.locate(entry.key), (OLD, OLD))


def blob(storage: LocalStorage, text: str) -> str:
    image_id = hashlib.sha256(text.encode()).hexdigest()
    storage.write_new(datasets.blob_key(image_id), text.encode())
    return image_id


def table(path: Path, *image_ids: str) -> Path:
    rows = [
        {"image_id": one, "label": "x", "event_timestamp": datetime(2024, 1, 1, tzinfo=UTC), "source_uri": "/x"}
        for one in image_ids
    ]
    manifest.write(path, pa.Table.from_pylist(rows, schema=manifest.MANIFEST))
    return path


def ran(storage: LocalStorage, tmp_path: Path, run_id: str, *image_ids: str) -> str:
    """A run whose only step assembled these images; the result's key prefix."""
    out = tmp_path / f"out-{run_id}"
    out.mkdir()
    table(out / "manifest.parquet", *image_ids)
    value = Assembled(
        interval="static", num_images=1, num_tombstones=0, num_quarantined=0, num_files=1, class_counts={"x": 1}
    )
    ResultStore(storage, tmp_path / "cache").publish("assemble", f"key-{run_id}", out, value, {})
    folder = RunFolder(storage, RunId(dag_id="ingest", run_id=run_id))
    folder.begin(RunRequest(recipe=Recipe(name="some")))
    now = datetime.now(UTC).isoformat()
    folder.record(
        Reference(
            step="assemble",
            key=f"key-{run_id}",
            digest="",
            reused=False,
            started_at=now,
            finished_at=now,
            function_s=0,
            process_s=0,
        )
    )
    return f"results/assemble/key-{run_id}/"


def collect(storage: LocalStorage, roots: Roots | None = None) -> list[str]:
    roots = roots or Roots()
    found = list(garbage.find_garbage(storage, garbage.mark(storage, roots, CUTOFF), CUTOFF))
    return [one.key for one in garbage.free(storage, found, garbage.mark(storage, roots, CUTOFF), CUTOFF)]


def test_old_runs_go_with_their_results_and_images(storage: LocalStorage, tmp_path: Path) -> None:
    gone, shared, kept = (blob(storage, name) for name in ("gone", "shared", "kept"))
    first = ran(storage, tmp_path, "first", gone, shared)
    age(storage)
    second = ran(storage, tmp_path, "second", shared, kept)
    assert sorted(collect(storage)) == [datasets.blob_key(gone), first, "runs/ingest/first/"]
    assert not list(storage.list(first))
    assert list(storage.list(second))
    assert storage.exists(datasets.blob_key(shared))
    assert collect(storage) == []


def test_the_latest_run_stays_however_old(storage: LocalStorage, tmp_path: Path) -> None:
    ran(storage, tmp_path, "only", blob(storage, "a"))
    age(storage)
    assert collect(storage) == []


def test_accepted_intervals_stay_with_the_runs_that_made_them(storage: LocalStorage, tmp_path: Path) -> None:
    image = blob(storage, "accepted")
    digest = "d" * 64
    storage.write_file(datasets.interval_key("set", "static", digest), table(tmp_path / "m", image))
    storage.write_file(datasets.interval_key("set", "static", "old"), table(tmp_path / "m", image))
    datasets.move_head(storage, "set", "static", digest, "ingest/maker")
    maker = ran(storage, tmp_path, "maker", image)
    age(storage)
    ran(storage, tmp_path, "later", blob(storage, "later"))
    assert collect(storage) == ["datasets/set/intervals/static/old/"]
    assert storage.exists(f"{maker}result.json")
    assert storage.exists(datasets.blob_key(image))


def test_a_parked_interval_keeps_its_run(storage: LocalStorage, tmp_path: Path) -> None:
    ran(storage, tmp_path, "parked", blob(storage, "a"))
    datasets.park(storage, "set", "2024-01-01", run="ingest/parked", reason="too few")
    age(storage)
    ran(storage, tmp_path, "later", blob(storage, "later"))
    assert collect(storage) == []


def test_registered_packages_keep_their_snapshot_and_its_images(storage: LocalStorage, tmp_path: Path) -> None:
    image, other = blob(storage, "taught"), blob(storage, "other")
    for package, snapshot, one in (("kept", "snap-kept", image), ("gone", "snap-gone", other)):
        lineage = {"lineage": {"snapshot_id": snapshot}}
        storage.write(f"packages/{package}/package.json", json.dumps(lineage).encode())
        storage.write(f"packages/{package}/model.onnx", b"")
        storage.write(f"lineage/{package}/recipe.json", b"")
        storage.write_file(datasets.snapshot_key(snapshot), table(tmp_path / "m", one))
        storage.write(f"bentos/{package}.tar", b"")
    age(storage)
    roots = Roots(packages=frozenset({"kept"}), bento_keys=frozenset({"bentos/kept.tar"}))
    assert sorted(collect(storage, roots)) == sorted(
        [
            datasets.blob_key(other),
            "bentos/gone.tar",
            "lineage/gone/",
            "packages/gone/",
            "snapshots/snap-gone/manifest.parquet",
        ]
    )
    assert storage.exists("packages/kept/model.onnx")


def test_what_is_found_again_is_young_again(storage: LocalStorage, tmp_path: Path) -> None:
    ran(storage, tmp_path, "first", blob(storage, "a"))
    age(storage)
    ran(storage, tmp_path, "second")
    marks = garbage.mark(storage, Roots(), CUTOFF)
    found = list(garbage.find_garbage(storage, marks, CUTOFF))
    assert len(found) == 3
    # Another step meets the image and the result while gc is under way.
    blob(storage, "a")
    assert ResultStore(storage, tmp_path / "cache").find("assemble", "key-first") is not None
    assert [one.kind for one in garbage.free(storage, found, marks, CUTOFF)] == ["runs"]


def test_what_gc_does_not_know_stays(storage: LocalStorage) -> None:
    for key in ("features/set/view/part.parquet", "docs/set/run/index.html", "mlflow/x", "datasets/set/parked/x.json"):
        storage.write(key, b'{"interval": "", "run": "", "reason": "", "parked_at": "", "examples": []}')
    storage.write("datasets/set/active/0123.json", b"")
    age(storage)
    assert collect(storage) == ["datasets/set/active/0123.json"]
