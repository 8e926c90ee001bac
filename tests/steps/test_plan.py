"""`plan` lists an interval and cuts it into shards."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipelines.core import manifest
from pipelines.core.errors import SourceError
from pipelines.core.recipe import Source
from pipelines.core.sources import open_source
from pipelines.core.values import Planned
from pipelines.steps import plan as module
from pipelines.steps.plan import plan


def folder(root: Path, count: int, below: str = "cat") -> Path:
    for i in range(count):
        path = root / below / f"{i:03d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return root


def planned(source: Path, out: Path, interval: str = "static", shard_size: int = 4) -> Planned:
    out.mkdir(exist_ok=True)
    return plan(open_source(Source(uri=str(source)), home=out), interval, out, shard_size=shard_size)


def test_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BUFFER", 3)
    found = planned(folder(tmp_path / "in", 10), tmp_path / "out")
    assert (found.num_files, found.num_shards) == (10, 3)
    tables = [manifest.read(tmp_path / "out" / manifest.shard_name(shard)) for shard in range(3)]
    assert [table.num_rows for table in tables] == [4, 4, 2]
    assert [Path(uri).name for table in tables for uri in table["uri"].to_pylist()] == [
        f"{i:03d}.jpg" for i in range(10)
    ]


def test_shards_grow_rather_than_become_too_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_SHARDS", 2)
    assert planned(folder(tmp_path / "in", 11), tmp_path / "out").num_shards == 2


def test_equal_listings_have_equal_digests(tmp_path: Path) -> None:
    source = folder(tmp_path / "in", 5)
    first = planned(source, tmp_path / "a")
    assert planned(source, tmp_path / "b") == first
    assert (tmp_path / "a/shard-00000.parquet").read_bytes() == (tmp_path / "b/shard-00000.parquet").read_bytes()
    os.utime(source / "cat/000.jpg", (1, 1))
    assert planned(source, tmp_path / "c").source_digest != first.source_digest


def test_a_day_without_images_is_one_empty_shard(tmp_path: Path) -> None:
    found = planned(folder(tmp_path / "in", 2, "dt=2024-01-01/cat"), tmp_path / "out", "2024-01-02")
    assert (found.num_files, found.num_shards) == (0, 1)
    assert manifest.read(tmp_path / "out/shard-00000.parquet").num_rows == 0


def test_an_undated_source_without_images_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "in/cat").mkdir(parents=True)
    with pytest.raises(SourceError, match="holds no images"):
        planned(tmp_path / "in", tmp_path / "out")
    with pytest.raises(SourceError, match="2024-01-01 to 2024-01-01 need"):
        planned(folder(tmp_path / "dated", 2, "dt=2024-01-01/cat"), tmp_path / "out2")
