"""`ingest` and `assemble`: from files to one manifest, with everything else named in quarantine."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.core import manifest
from pipelines.core.datasets import blob_key
from pipelines.core.recipe import Source
from pipelines.core.sources import open_source
from pipelines.core.storage import LocalStorage
from pipelines.core.values import Assembled, Ingested
from pipelines.steps import ingest as module
from pipelines.steps.assemble import assemble
from pipelines.steps.ingest import ingest
from pipelines.steps.plan import plan


def png(seed: int, size: tuple[int, int] = (12, 8)) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def fill(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


class Chain:
    """plan, ingest of every shard, assemble."""

    def __init__(self, work: Path) -> None:
        self.work = work
        self.storage = LocalStorage(work / "store")
        self.out = work / "assembled"
        self.ingested: list[Ingested] = []

    def run(self, uri: Path, shard_size: int = 1000) -> Assembled:
        planned_in = self.work / "plan"
        planned_in.mkdir()
        planned = plan(open_source(Source(uri=str(uri)), home=self.work), "static", planned_in, shard_size=shard_size)
        shards = []
        for shard in range(planned.num_shards):
            out = self.work / f"shard-{shard}"
            out.mkdir()
            shards.append(out)
            self.ingested.append(
                ingest(planned_in, shard, self.storage, out, cache=self.work / "cache", endpoint_url=None)
            )
        self.out.mkdir()
        return assemble(planned, shards, self.out)

    def rows(self, table: str = "manifest") -> list[dict[str, object]]:
        rows: list[dict[str, object]] = manifest.read(self.out / f"{table}.parquet").to_pylist()
        return rows


@pytest.fixture
def chain(tmp_path: Path) -> Chain:
    return Chain(tmp_path)


def test_an_image_becomes_a_row_and_a_blob(chain: Chain, tmp_path: Path) -> None:
    data = png(1)
    assembled = chain.run(fill(tmp_path / "in", {"cat/1.png": data, "dog/2.png": png(2)}))
    assert assembled.class_counts == {"cat": 1, "dog": 1}
    image_id = hashlib.sha256(data).hexdigest()
    row = next(row for row in chain.rows() if row["image_id"] == image_id)
    assert (row["label"], row["width"], row["height"], row["format"], row["mode"]) == ("cat", 12, 8, "PNG", "RGB")
    assert row["size_bytes"] == len(data)
    assert row["source_uri"] == str(tmp_path / "in/cat/1.png")
    assert chain.storage.read(blob_key(image_id)) == data
    assert [row["image_id"] for row in chain.rows()] == sorted(str(row["image_id"]) for row in chain.rows())
    assert [row["image_id"] for row in chain.rows("statistics")] == [row["image_id"] for row in chain.rows()]


def test_statistics_mean_what_they_say(chain: Chain, tmp_path: Path) -> None:
    def flat(grey: int) -> bytes:
        file = io.BytesIO()
        Image.new("L", (64, 32), grey).save(file, "PNG")
        return file.getvalue()

    board = np.kron(np.indices((8, 8)).sum(0) % 2, np.ones((4, 4))) * 255
    file = io.BytesIO()
    Image.fromarray(board.astype(np.uint8)).save(file, "PNG")
    chain.run(fill(tmp_path / "in", {"x/flat.png": flat(51), "y/board.png": file.getvalue()}))
    ids = {str(row["source_uri"])[-9:]: row["image_id"] for row in chain.rows()}
    found = {str(row["image_id"]): row for row in chain.rows("statistics")}
    flat_row = next(found[str(image)] for name, image in ids.items() if name.endswith("flat.png"))
    board_row = next(found[str(image)] for name, image in ids.items() if name.endswith("board.png"))
    assert flat_row["brightness"] == pytest.approx(0.2)
    assert (flat_row["contrast"], flat_row["sharpness"], flat_row["entropy"]) == (0, 0, 0)
    assert (flat_row["aspect"], flat_row["size_px"]) == (2, 2048)
    assert board_row["brightness"] == pytest.approx(0.5)
    assert board_row["contrast"] == pytest.approx(0.5)
    assert board_row["entropy"] == pytest.approx(1)
    assert board_row["sharpness"] > 0.1  # type: ignore[operator]


def test_what_is_no_image_is_quarantined_with_its_reason(chain: Chain, tmp_path: Path) -> None:
    files = {
        "cat/1.png": png(1),
        "cat/empty.png": b"",
        "cat/text.jpg": b"not an image at all",
        "cat/cut.png": png(3)[:100],
        "dog/2.png": png(2),
        "bird/only.tif": b"II*\0....",
        "README.md": b"about",
    }
    assembled = chain.run(fill(tmp_path / "in", files))
    reasons = {Path(str(row["source_uri"])).name: row["reason"] for row in chain.rows("quarantine")}
    assert reasons == {
        "README.md": "no_label",
        "empty.png": "empty",
        "text.jpg": "not_an_image",
        "cut.png": "truncated",
        "only.tif": "unsupported_format",
    }
    assert (assembled.num_images, assembled.num_quarantined, assembled.num_files) == (2, 5, 7)
    assert any("class bird: none of its files" in note for note in assembled.notes)


def test_an_image_in_two_classes_is_reported_by_name(chain: Chain, tmp_path: Path) -> None:
    same = png(5)
    files = {"cat/a.png": same, "dog/b.png": same, "cat/1.png": png(1), "dog/2.png": png(2)}
    assembled = chain.run(fill(tmp_path / "in", files))
    assert assembled.class_counts == {"cat": 1, "dog": 1}
    quarantine = chain.rows("quarantine")
    assert {row["reason"] for row in quarantine} == {"conflicting_labels"}
    for row in quarantine:
        assert "cat (" in str(row["detail"])
        assert "b.png" in str(row["detail"])
    assert any("the same image is cat" in note for note in assembled.notes)


def test_copies_are_one_row_and_are_listed(chain: Chain, tmp_path: Path) -> None:
    same = png(5)
    files = {"train/cat/a.png": same, "test/cat/b.png": same, "train/cat/c.png": same, "train/dog/2.png": png(2)}
    assembled = chain.run(fill(tmp_path / "in", files), shard_size=2)
    assert assembled.num_images == 2
    kept = next(row for row in chain.rows() if row["label"] == "cat")
    assert (kept["split"], Path(str(kept["source_uri"])).name) == ("test", "b.png")
    copies = chain.rows("duplicates")
    assert [(Path(str(row["source_uri"])).name, row["split"], row["kept_split"]) for row in copies] == [
        ("a.png", "train", "test"),
        ("c.png", "train", "test"),
    ]
    assert any("2 files repeat another one" in note for note in assembled.notes)


def test_a_table_may_miss_files_relabel_and_withdraw(chain: Chain, tmp_path: Path) -> None:
    root = fill(tmp_path / "in", {"1.png": png(1), "2.png": png(2), "3.png": png(3)})
    (root / "t.csv").write_text(
        "uri,label,tombstone\n1.png,cat,\n2.png,dog,\nnone.png,cat,\n3.png,,true\nvanished.png,,true\n"
    )
    assembled = chain.run(root / "t.csv")
    assert (assembled.num_images, assembled.num_tombstones, assembled.num_quarantined) == (2, 2, 1)
    assert [one.num_unread for one in chain.ingested] == [1]
    assert [row["reason"] for row in chain.rows("quarantine")] == ["missing_file"]
    withdrawn = {row["image_id"] for row in chain.rows() if row["label"] is None}
    gone = manifest.uri_id(str(root / "vanished.png"))
    assert withdrawn == {hashlib.sha256(png(3)).hexdigest(), gone}
    assert not chain.storage.exists(blob_key(hashlib.sha256(png(3)).hexdigest()))
    assert len(chain.rows("statistics")) == 2


def test_within_an_interval_the_newest_label_counts(chain: Chain, tmp_path: Path) -> None:
    root = fill(tmp_path / "in", {"1.png": png(1), "2.png": png(2)})
    (root / "t.csv").write_text("uri,label\n1.png,cat\n2.png,dog\n")
    chain.run(root / "t.csv")
    day = Chain(tmp_path / "day")
    day.work.mkdir()
    (root / "u.csv").write_text("uri,label,event_time\n1.png,cat,2024-01-01T08:00\n1.png,dog,2024-01-01T09:00\n")
    out = day.work / "plan"
    out.mkdir()
    planned = plan(open_source(Source(uri=str(root / "u.csv")), home=day.work), "2024-01-01", out)
    shard = day.work / "shard"
    shard.mkdir()
    ingest(out, 0, day.storage, shard, cache=day.work, endpoint_url=None)
    day.out.mkdir()
    assemble(planned, [shard], day.out)
    assert [row["label"] for row in day.rows()] == ["dog"]
    assert day.rows("quarantine") == []


def test_processes_and_one_process_find_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = fill(tmp_path / "in", {f"{'cat' if i % 2 else 'dog'}/{i}.png": png(i) for i in range(40)})
    (root / "cat/bad.png").write_bytes(b"bad")
    outputs = []
    for few in (0, 1000):
        monkeypatch.setattr(module, "_FEW", few)
        monkeypatch.setattr(module, "_CHUNK", 16)
        chain = Chain(tmp_path / f"few-{few}")
        chain.work.mkdir()
        chain.run(root)
        outputs.append(
            [(chain.out / f"{name}.parquet").read_bytes() for name in ("manifest", "statistics", "quarantine")]
        )
        assert sum(1 for _ in chain.storage.list("blobs/")) == 40
    assert outputs[0] == outputs[1]


def test_shards_do_not_change_the_manifest(tmp_path: Path) -> None:
    root = fill(tmp_path / "in", {f"{'cat' if i % 2 else 'dog'}/{i}.png": png(i % 17) for i in range(40)})
    tables = []
    for size in (7, 100):
        chain = Chain(tmp_path / f"size-{size}")
        chain.work.mkdir()
        chain.run(root, shard_size=size)
        tables.append([chain.rows(name) for name in ("manifest", "statistics", "quarantine", "duplicates")])
    assert tables[0] == tables[1]
