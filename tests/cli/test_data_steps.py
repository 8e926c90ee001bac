"""From a source to a snapshot by the real steps, on a folder store and over S3; reused, repeated and killed."""

from __future__ import annotations

import io
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.cli.chain.base import Chain
from pipelines.cli.chain.command import known_intervals
from pipelines.cli.chain.report import Reporter
from pipelines.cli.execute import StepOutcome, execute, storage_of
from pipelines.cli.past_runs import past_runs
from pipelines.cli.registry import StepSpec
from pipelines.cli.wiring import data
from pipelines.core import datasets, manifest
from pipelines.core.recipe import Recipe, Source, Split
from pipelines.core.results import ResultStore
from pipelines.core.runs import RunId, RunRequest
from pipelines.core.storage import open_storage
from pipelines.settings import Settings

# Validation and features have tests of their own.
SPECS: dict[str, StepSpec] = {spec.name: spec for spec in data.SPECS}
SPECS["accept"] = replace(SPECS["accept"], upstream=("assemble",))
DAYS = ("2024-01-01", "2024-01-02", "2024-01-03")


def png(seed: int) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def images() -> Iterator[tuple[str, bytes]]:
    for at, day in enumerate(DAYS):
        for i in range(12):
            yield f"dt={day}/{'cat' if i % 2 else 'dog'}/{i}.png", png(100 * at + i)
        yield f"dt={day}/cat/bad.png", b"bad"


class Pipeline:
    """Runs of one recipe."""

    def __init__(self, settings: Settings, uri: str) -> None:
        self.settings = settings
        self.recipe = Recipe(
            name="photos", source=Source(uri=uri, dated=True), split=Split(val_share=0.3, test_share=0.3)
        )
        self.storage = storage_of(settings)

    def step(self, name: str, run: RunId, interval: str = "", shard: int | None = None, as_of: str = "") -> StepOutcome:
        spec = SPECS[name]
        begins = name in ("plan", "settle")
        request = RunRequest(recipe=self.recipe, interval=interval, as_of=as_of) if begins else None
        return execute(self.settings, spec, run, shard=shard, request=request)

    def ingest(self, interval: str, attempt: str = "one") -> dict[str, StepOutcome]:
        run = RunId(dag_id="ingest_images", run_id=f"{interval} {attempt}")
        done = {"plan": self.step("plan", run, interval)}
        for shard in range(int(done["plan"].value["num_shards"])):
            done["ingest"] = self.step("ingest", run, shard=shard)
        for name in ("assemble", "accept"):
            done[name] = self.step(name, run)
        return done

    def snapshot(self, attempt: str = "one", as_of: str = "") -> StepOutcome:
        run = RunId(dag_id="train_classifier", run_id=attempt)
        self.step("settle", run, as_of=as_of)
        return self.step("snapshot", run)


def local(settings: Settings, folder: Path) -> Pipeline:
    for name, content in images():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return Pipeline(settings, str(folder))


def remote(settings: Settings, endpoint: object) -> Pipeline:
    bucket = endpoint.bucket()  # type: ignore[attr-defined]
    url: str = endpoint.url  # type: ignore[attr-defined]
    source = open_storage(f"s3://{bucket}/in", endpoint_url=url)
    for name, content in images():
        source.write(name, content)
    return Pipeline(replace(settings, store_uri=f"s3://{bucket}/store", s3_endpoint_url=url), source.uri)


@pytest.fixture(params=["folder", "s3"])
def pipeline(request: pytest.FixtureRequest, home_settings: Settings, tmp_path: Path) -> Pipeline:
    if request.param == "folder":
        return local(home_settings, tmp_path / "in")
    return remote(home_settings, request.getfixturevalue("s3_endpoint"))


def test_from_a_source_to_a_snapshot(pipeline: Pipeline) -> None:
    for day in DAYS:
        done = pipeline.ingest(day)
        assert done["assemble"].value["num_images"] == 12
        assert done["assemble"].value["num_quarantined"] == 1
        assert done["accept"].value["changed"]
    found = pipeline.snapshot()
    assert found.value["num_images"] == 36
    assert found.value["class_names"] == ["cat", "dog"]
    table = manifest.read(
        pipeline.storage.local(datasets.snapshot_key(found.value["snapshot_id"]), pipeline.settings.home / "cache")
    )
    assert table.schema.names == manifest.SNAPSHOT.names
    blobs = {entry.key for entry in pipeline.storage.list("blobs/")}
    assert {datasets.blob_key(image_id) for image_id in table["image_id"].to_pylist()} == blobs
    assert manifest.rows_digest(table) == found.value["snapshot_id"]
    # The same again is reused, and changes nothing.
    again = pipeline.ingest(DAYS[0], "two")
    assert again["ingest"].reused
    assert again["assemble"].reused
    assert not again["accept"].value["changed"]
    assert pipeline.snapshot("two").reused


def test_a_missing_file_is_looked_for_again(home_settings: Settings, s3_endpoint: object, tmp_path: Path) -> None:
    store = open_storage(f"s3://{s3_endpoint.bucket()}/in", endpoint_url=s3_endpoint.url)  # type: ignore[attr-defined]
    rows = "\n".join(f"{store.uri}/{i}.png,{'cat' if i % 2 else 'dog'},{DAYS[0]}" for i in range(4))
    (tmp_path / "table.csv").write_text(f"uri,label,event_time\n{rows}\n")
    for i in range(3):
        store.write(f"{i}.png", png(i))
    chain = Pipeline(
        replace(home_settings, s3_endpoint_url=s3_endpoint.url),  # type: ignore[attr-defined]
        str(tmp_path / "table.csv"),
    )
    began = datetime.now(UTC)
    assert chain.ingest(DAYS[0])["assemble"].value["num_images"] == 3
    (past,) = past_runs(chain.storage, "ingest_images")
    asked = Chain(chain.settings, chain.recipe, Reporter(chain.storage, ResultStore(chain.storage, tmp_path)))
    assert not asked.has_read_all(past)
    asked.began = began  # a command tries again once, and not for ever
    assert asked.has_read_all(past)
    store.write("3.png", png(3))
    again = chain.ingest(DAYS[0], "two")
    assert not again["ingest"].reused
    assert again["assemble"].value["num_images"] == 4
    assert chain.ingest(DAYS[0], "three")["ingest"].reused


def test_a_day_that_was_deleted_at_its_source_leaves_the_dataset(home_settings: Settings, tmp_path: Path) -> None:
    chain = local(home_settings, tmp_path / "in")
    for day in DAYS:
        chain.ingest(day)
    shutil.rmtree(tmp_path / "in" / f"dt={DAYS[1]}")
    assert known_intervals(home_settings, chain.recipe) == list(DAYS)
    done = chain.ingest(DAYS[1], "two")
    assert "nothing_to_do" not in done["plan"].facts
    assert done["accept"].value["changed"]
    assert chain.snapshot().value["num_images"] == 24
    assert not chain.ingest(DAYS[1], "three")["accept"].value["changed"]


def test_any_order_of_intervals_and_both_stores_are_one_snapshot(
    home_settings: Settings, s3_endpoint: object, tmp_path: Path
) -> None:
    ids = set()
    for at, order in enumerate((DAYS, DAYS[::-1])):
        chain = local(replace(home_settings, store_uri=str(tmp_path / f"store-{at}")), tmp_path / "in")
        for day in order:
            chain.ingest(day)
        ids.add(chain.snapshot().value["snapshot_id"])
    assert len(ids) == 1


def test_as_of_composes_the_days_until_then(home_settings: Settings, tmp_path: Path) -> None:
    chain = local(home_settings, tmp_path / "in")
    for day in DAYS[:2]:
        chain.ingest(day)
    before = chain.snapshot("one")
    chain.ingest(DAYS[2])
    assert chain.snapshot("two").value["num_images"] == 36
    restricted = chain.snapshot("three", as_of=DAYS[1])
    assert restricted.reused
    assert restricted.value["snapshot_id"] == before.value["snapshot_id"]


def test_a_changed_day_replaces_its_part(home_settings: Settings, tmp_path: Path) -> None:
    chain = local(home_settings, tmp_path / "in")
    for day in DAYS:
        chain.ingest(day)
    (tmp_path / "in" / f"dt={DAYS[1]}" / "cat" / "1.png").unlink()
    done = chain.ingest(DAYS[1], "two")
    assert done["accept"].value["changed"]
    assert chain.snapshot().value["num_images"] == 35


def test_a_killed_ingest_ends_the_same_when_it_is_run_again(home_settings: Settings, tmp_path: Path) -> None:
    chain = local(home_settings, tmp_path / "in")
    (home_settings.home / "recipes").mkdir(parents=True)
    (home_settings.home / "recipes" / "photos.toml").write_text(
        f'[source]\nuri = "{tmp_path / "in"}"\ndated = true\n[split]\nval_share = 0.3\ntest_share = 0.3\n'
    )
    day = tmp_path / "in" / f"dt={DAYS[0]}"
    for i in range(700):
        (day / "cat" / f"more-{i}.png").write_bytes(png(10_000 + i))
    run = RunId(dag_id="ingest_images", run_id=f"{DAYS[0]} one")
    chain.step("plan", run, DAYS[0])
    argv = [sys.executable, "-m", "pipelines.cli.main", "step", "ingest", "--run", str(run), "--shard", "0"]
    process = subprocess.Popen(argv, env={**os.environ, "DARKROOM_HOME": str(home_settings.home)}, cwd=Path.cwd())
    deadline = time.monotonic() + 60
    while not any(True for _ in chain.storage.list("blobs/")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not list(chain.storage.list("results/ingest/"))
    done = chain.ingest(DAYS[0])
    assert done["assemble"].value["num_images"] == 712
    undisturbed = local(replace(home_settings, store_uri=str(tmp_path / "other")), tmp_path / "in")
    assert undisturbed.ingest(DAYS[0])["assemble"].value == done["assemble"].value
    heads = [datasets.read_head(one.storage, "photos").intervals for one in (chain, undisturbed)]
    assert heads[0] == heads[1]


def test_settle_waits_while_an_interval_is_on_its_way(home_settings: Settings, tmp_path: Path) -> None:
    chain = local(home_settings, tmp_path / "in")
    run = RunId(dag_id="ingest_images", run_id="x")
    chain.step("plan", run, DAYS[0])
    train = RunId(dag_id="train_classifier", run_id="y")
    assert chain.step("settle", train).value["wait_s"] > 0
    chain.step("ingest", run, shard=0)
    chain.step("assemble", run)
    assert chain.step("settle", train).value["wait_s"] > 0
    chain.step("accept", run)
    cool_down_s = chain.recipe.schedule.cool_down_s
    assert 0 < chain.step("settle", train).value["wait_s"] <= cool_down_s
