"""Both storages keep the same promises; S3 is driven over its real protocol."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.core.errors import NotFound, PlatformError, SourceError
from pipelines.core.storage import LocalStorage, Storage, open_storage


@pytest.fixture(params=["folder", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Storage]:
    if request.param == "folder":
        yield open_storage(str(tmp_path / "store"))
    else:
        s3 = request.getfixturevalue("s3_endpoint")
        yield open_storage(f"s3://{s3.bucket()}/some/prefix", endpoint_url=s3.url)


def test_reads_what_was_written(storage: Storage) -> None:
    storage.write("a/b.txt", b"one")
    storage.write("a/b.txt", b"two")
    assert storage.read("a/b.txt") == b"two"
    assert storage.exists("a/b.txt")
    assert not storage.exists("a/c.txt")
    entry = storage.find("a/b.txt")
    assert entry is not None
    assert entry.size_bytes == 3
    assert entry.modified_at > 1e9
    assert storage.find("a") is None


def test_missing_objects(storage: Storage) -> None:
    assert storage.read_versioned("nothing") is None
    assert storage.find("nothing") is None
    storage.delete("nothing")
    with pytest.raises(NotFound, match="nothing"):
        storage.read("nothing")


def test_lists_in_key_order_below_a_prefix(storage: Storage) -> None:
    for key in ("b/1", "a.txt", "a/2", "a/1", "a-b", "ab/1"):
        storage.write(key, key.encode())
    assert [entry.key for entry in storage.list()] == ["a-b", "a.txt", "a/1", "a/2", "ab/1", "b/1"]
    assert [entry.key for entry in storage.list("a/")] == ["a/1", "a/2"]
    assert [entry.key for entry in storage.list("a")] == ["a-b", "a.txt", "a/1", "a/2", "ab/1"]
    assert list(storage.list("none/")) == []


def test_lists_one_level(storage: Storage) -> None:
    for key in ("top", "x/1", "x/y/2", "z/3"):
        storage.write(key, b"")
    names, files = storage.folders()
    assert (names, [entry.key for entry in files]) == (["x", "z"], ["top"])
    names, files = storage.folders("x/")
    assert (names, [entry.key for entry in files]) == (["y"], ["x/1"])
    assert storage.folders("none/") == ([], [])


def test_more_objects_than_one_page(s3_endpoint, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr("pipelines.core.storage.s3.PAGE_SIZE", 10)
    storage = open_storage(f"s3://{s3_endpoint.bucket()}", endpoint_url=s3_endpoint.url)
    for i in range(45):
        storage.write(f"many/{i:05d}", b"")
    assert [entry.key for entry in storage.list("many/")] == [f"many/{i:05d}" for i in range(45)]


def test_compare_and_swap(storage: Storage) -> None:
    assert storage.compare_and_swap("head", None, b"1")
    assert not storage.compare_and_swap("head", None, b"2")
    found = storage.read_versioned("head")
    assert found is not None
    assert found[0] == b"1"
    assert storage.compare_and_swap("head", found[1], b"2")
    assert not storage.compare_and_swap("head", found[1], b"3")
    assert storage.read("head") == b"2"
    assert not storage.compare_and_swap("absent", found[1], b"3")


def test_of_many_swaps_none_is_lost(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)

    def add() -> None:
        for _ in range(20):
            while True:
                found = storage.read_versioned("count")
                now = int(found[0]) if found else 0
                if storage.compare_and_swap("count", found[1] if found else None, str(now + 1).encode()):
                    break

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert storage.read("count") == b"80"


def test_a_new_object_is_written_once(storage: Storage) -> None:
    storage.write_new("blobs/x", b"abc")
    before = storage.find("blobs/x")
    storage.write_new("blobs/x", b"abc")
    storage.flush()
    assert storage.find("blobs/x") == before
    storage.write("blobs/x", b"")  # what a power failure may leave
    storage.write_new("blobs/x", b"abc")
    assert storage.read("blobs/x") == b"abc"


def test_files_and_local_copies(storage: Storage, tmp_path: Path) -> None:
    for name in ("one", "sub/two"):
        path = tmp_path / "made"
        path.write_bytes(name.encode() * 1000)
        storage.write_file(f"results/r/{name}", path)
    cache = tmp_path / "cache"
    assert storage.local("results/r/one", cache).read_bytes() == b"one" * 1000
    folder = storage.local("results/r", cache)
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()) == ["one", "sub/two"]
    assert storage.local("results/r", cache) == folder
    storage.write("results/r/one", b"replaced")
    assert (storage.local("results/r", cache) / "one").read_bytes() == b"replaced"
    with pytest.raises(NotFound):
        storage.local("results/none", cache)
    assert not list(cache.rglob(".partial-*"))


def test_locations(storage: Storage) -> None:
    assert storage.locate("a/b") == f"{storage.uri}/a/b"


def test_keys_stay_inside(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path / "store")
    for key in ("../x", "/etc/passwd"):
        with pytest.raises(SourceError, match="stay below"):
            storage.read(key)


def test_a_half_written_file_is_not_listed(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    storage.write("a", b"1")
    storage.compare_and_swap("b", None, b"1")
    (tmp_path / ".partial" / "0123").write_bytes(b"")
    assert [entry.key for entry in storage.list()] == ["a", "b"]
    assert storage.folders()[0] == []
    assert list(storage.leftovers()) == [tmp_path / ".partial" / "0123"]


WRITES = """
import os, pathlib, signal, sys
from pipelines.core.storage import LocalStorage

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

pathlib.Path.replace = die
storage, made = LocalStorage(pathlib.Path(sys.argv[1])), pathlib.Path(sys.argv[2])
made.write_bytes(b"x")
{"write": storage.write, "write_new": storage.write_new}.get(sys.argv[3], storage.write_file)(
    "packages/p/file", made if sys.argv[3] == "write_file" else b"x"
)
"""


@pytest.mark.parametrize("way", ["write", "write_new", "write_file"])
def test_a_writer_that_was_killed_leaves_nothing_beside_the_objects(tmp_path: Path, way: str) -> None:
    arguments = [str(tmp_path / "store"), str(tmp_path / "made"), way]
    assert subprocess.run([sys.executable, "-c", WRITES, *arguments], check=False).returncode == -9
    assert list((tmp_path / "store" / "packages").rglob("*")) == [tmp_path / "store" / "packages" / "p"]
    assert len(list(LocalStorage(tmp_path / "store").leftovers())) == 1


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda file: flushed.append(os.fstat(file).st_ino))
    path = tmp_path / "made"
    path.write_bytes(b"x")
    LocalStorage(tmp_path / "store").write_file("results/r/one", path)
    assert flushed == [(tmp_path / "store/results/r/one").stat().st_ino]


def test_links_that_lead_nowhere_are_left_out_and_remembered(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    storage.write("a", b"1")
    (tmp_path / "gone").symlink_to(tmp_path / "nothing")
    (tmp_path / "round").symlink_to(tmp_path / "round")
    assert [entry.key for entry in storage.folders()[1]] == ["a"]
    assert [entry.key for entry in storage.list()] == ["a"]
    assert storage.broken_links == {str(tmp_path / "gone"), str(tmp_path / "round")}


def test_other_schemes_are_refused() -> None:
    with pytest.raises(SourceError, match="gs://bucket"):
        open_storage("gs://bucket/x")
    with pytest.raises(SourceError, match="s3://bucket/prefix"):
        open_storage("s3://")


def test_s3_errors_name_the_mend(s3_endpoint, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(SourceError, match="no such bucket"):
        list(open_storage("s3://never-made", endpoint_url=s3_endpoint.url).list())
    monkeypatch.setitem(os.environ, "AWS_MAX_ATTEMPTS", "1")
    closed = open_storage("s3://bucket", endpoint_url="http://127.0.0.1:9")
    with pytest.raises(PlatformError, match="DARKROOM_S3_ENDPOINT_URL"):
        closed.read("x")
