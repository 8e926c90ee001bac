"""The index of labels: what it says is what the composed manifests say, whatever came before."""

from __future__ import annotations

import hashlib
import random
import sqlite3
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pytest

from pipelines.core import datasets, labels, manifest
from pipelines.core.snapshot import merge
from pipelines.core.storage import Storage, open_storage

NAME = "photos"
IMAGES = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(30)]
DAY = datetime(2024, 1, 1, tzinfo=UTC)


class Dataset:
    """Intervals of random rows in a store."""

    def __init__(self, tmp_path: Path) -> None:
        self.storage: Storage = open_storage(str(tmp_path / "store"))
        self.cache = tmp_path / "cache"
        self.path = labels.index_path(self.cache, self.storage, NAME)
        self.parts: dict[str, pa.Table] = {}
        self._tmp_path = tmp_path

    def put(self, interval: str, seed: int) -> None:
        """Accept an interval in place of what it was: images, tombstones, and tombstones that know only a URI."""
        chance = random.Random(seed)
        rows = [
            {
                "image_id": image,
                "label": chance.choice(["red", "green", None]),
                "event_timestamp": DAY + timedelta(days=chance.randrange(4)),
                "source_uri": f"file-{chance.randrange(40)}",
            }
            for image in chance.sample(IMAGES, 15)
        ]
        for number in chance.sample(range(40), 2):
            uri = f"file-{number}"
            when = DAY + timedelta(days=chance.randrange(4))
            rows.append({"image_id": manifest.uri_id(uri), "label": None, "event_timestamp": when, "source_uri": uri})
        table = pa.Table.from_pylist(
            [
                {**dict.fromkeys(manifest.MANIFEST.names), **row}
                for row in sorted(rows, key=lambda row: row["image_id"])
            ],
            schema=manifest.MANIFEST,
        )
        self.parts[interval] = table
        digest = manifest.rows_digest(table)
        file = self._tmp_path / "manifest.parquet"
        manifest.write(file, table)
        self.storage.write_file(datasets.interval_key(NAME, interval, digest), file)
        datasets.move_head(self.storage, NAME, interval, digest, f"run-{interval}-{seed}")

    def update(self) -> str:
        return labels.update(self.storage, NAME, self.path, self.cache)

    def expected(self) -> dict[str, tuple[str, str]]:
        rows = merge(self.parts).select(["image_id", "label", "source_uri"]).to_pylist()
        return {row["image_id"]: (row["label"], row["source_uri"]) for row in rows}

    def found(self) -> dict[str, tuple[str, str]]:
        images = labels.find(self.path, IMAGES).images
        return {image: (one.label, one.source_uri) for image, one in images.items() if one.label is not None}


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return Dataset(tmp_path)


@pytest.mark.parametrize("seed", range(8))
def test_it_says_what_the_composed_manifests_say(dataset: Dataset, seed: int) -> None:
    for place, interval in enumerate(("static", "2024-01-02", "2024-01-01", "2024-01-02", "2024-01-03", "static")):
        dataset.put(interval, 100 * seed + place)
        assert dataset.update() == datasets.read_head(dataset.storage, NAME).digest() == labels.head_of(dataset.path)
        assert dataset.found() == dataset.expected()
    assert len(dataset.found()) > 5


def test_only_what_changed_is_read(dataset: Dataset) -> None:
    for day in (1, 2, 3):
        dataset.put(f"2024-01-0{day}", day)
    dataset.update()
    old = datasets.read_head(dataset.storage, NAME).intervals["2024-01-01"]
    dataset.storage.delete(datasets.interval_key(NAME, "2024-01-01", old))
    dataset.put("2024-01-03", 33)
    dataset.update()
    assert dataset.found() == dataset.expected()


def test_before_there_is_an_index(dataset: Dataset) -> None:
    assert labels.head_of(dataset.path) is None
    with pytest.raises(sqlite3.Error):
        labels.find(dataset.path, IMAGES)
    dataset.update()
    assert dataset.found() == {}
    assert labels.find(dataset.path, IMAGES).head_digest == datasets.Head().digest()


@pytest.mark.parametrize("spoilt", [b"not an index", b"SQLite format 3\0" + bytes(4000)])
def test_a_spoilt_file_is_made_anew(dataset: Dataset, spoilt: bytes) -> None:
    dataset.put("static", 1)
    dataset.update()
    dataset.path.write_bytes(spoilt)
    assert labels.head_of(dataset.path) is None
    dataset.update()
    assert dataset.found() == dataset.expected()


def test_a_file_of_another_form_is_made_anew(dataset: Dataset) -> None:
    dataset.put("static", 1)
    dataset.path.parent.mkdir(parents=True)
    with sqlite3.connect(dataset.path) as index:
        index.execute("CREATE TABLE images (of TEXT)")
        index.execute("PRAGMA user_version = 99")
    index.close()
    dataset.update()
    assert dataset.found() == dataset.expected()


def test_an_update_that_fails_leaves_the_old_index(dataset: Dataset) -> None:
    dataset.put("2024-01-01", 1)
    before = dataset.update()
    expected = dataset.expected()
    dataset.put("2024-01-02", 2)
    new = datasets.read_head(dataset.storage, NAME).intervals["2024-01-02"]
    key = datasets.interval_key(NAME, "2024-01-02", new)
    data = dataset.storage.read(key)
    dataset.storage.write(key, data[:-100])
    with pytest.raises(pa.ArrowInvalid):
        dataset.update()
    assert (labels.head_of(dataset.path), dataset.found()) == (before, expected)
    dataset.storage.write(key, data)
    dataset.update()
    assert dataset.found() == dataset.expected()


def test_several_may_update_at_once(dataset: Dataset) -> None:
    for day in range(1, 10):
        dataset.put(f"2024-01-0{day}", day)
    heads: list[str] = []
    threads = [threading.Thread(target=lambda: heads.append(dataset.update())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert heads == [datasets.read_head(dataset.storage, NAME).digest()] * 4
    assert dataset.found() == dataset.expected()


def test_one_store_s_index_is_not_another_s(tmp_path: Path) -> None:
    stores = [open_storage(str(tmp_path / name)) for name in ("a", "b")]
    assert len({labels.index_path(tmp_path, store, NAME) for store in stores}) == 2
