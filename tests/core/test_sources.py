"""Every kind of source lists the same images, by interval, and reports what a person should know."""

from __future__ import annotations

import errno
import os
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.core.errors import ImageError, PlatformError, SourceError
from pipelines.core.recipe import Source
from pipelines.core.sources import SourceFile, list_intervals, open_source
from pipelines.core.sources.files import Reader
from pipelines.core.storage import open_storage

Pack = Callable[[Path], Source]


def fill(root: Path, *names: str) -> Path:
    """Files whose bytes are their own names."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("/"):
            path.mkdir()
        else:
            path.write_text(name)
    return root


def listed(source: Source, home: Path, interval: str = "static", **options: str) -> tuple[list[SourceFile], list[str]]:
    notes: list[str] = []
    return list(open_source(source, home=home, **options).files(interval, notes)), notes  # type: ignore[arg-type]


def labels(files: list[SourceFile]) -> list[tuple[str, str | None, str | None]]:
    return [(Path(file.uri).name, file.split, file.label) for file in files]


@pytest.fixture(params=["folder", "tar", "tar.gz", "zip", "wrapped tar", "s3", "s3 tar"])
def pack(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Pack, dict[str, str]]:
    """Turns a folder into a source of each kind."""
    kind = request.param
    options: dict[str, str] = {}
    s3 = request.getfixturevalue("s3_endpoint") if kind.startswith("s3") else None

    def make(folder: Path) -> Source:
        if kind == "folder":
            return Source(uri=str(folder))
        if kind == "zip":
            shutil.make_archive(str(tmp_path / "packed"), "zip", folder)
            return Source(uri=str(tmp_path / "packed.zip"))
        if s3 is not None:
            options["endpoint_url"] = s3.url
            storage = open_storage(f"s3://{s3.bucket()}/some/where", endpoint_url=s3.url)
            if kind == "s3 tar":
                archive = tmp_path / "packed.tar"
                with tarfile.open(archive, "w") as tar:
                    tar.add(folder, ".")
                storage.write_file("packed.tar", archive)
                return Source(uri=f"{storage.uri}/packed.tar")
            for path in sorted(folder.rglob("*")):
                if path.is_file():
                    storage.write(str(path.relative_to(folder)), path.read_bytes())
            return Source(uri=f"{storage.uri}/")
        suffix = "tar.gz" if kind == "tar.gz" else "tar"
        with tarfile.open(tmp_path / f"packed.{suffix}", "w:gz" if kind == "tar.gz" else "w") as tar:
            tar.add(folder, "my photos" if kind == "wrapped tar" else ".")
        return Source(uri=str(tmp_path / f"packed.{suffix}"))

    return make, options


def test_class_folders(pack: tuple[Pack, dict[str, str]], tmp_path: Path) -> None:
    source = pack[0](fill(tmp_path / "in", "cat/1.jpg", "cat/deep/2.jpg", "dog/3.jpg"))
    assert list_intervals(source, home=tmp_path, **pack[1]) == ["static"]
    files, _ = listed(source, tmp_path, **pack[1])
    assert labels(files) == [("1.jpg", None, "cat"), ("2.jpg", None, "cat"), ("3.jpg", None, "dog")]
    reader = Reader(tmp_path / "cache", pack[1].get("endpoint_url"))
    contents = [reader.read(file.uri, file.archive, file.offset, file.size_bytes) for file in files]
    assert contents == [b"cat/1.jpg", b"cat/deep/2.jpg", b"dog/3.jpg"]


def test_splits_and_days_in_any_order(pack: tuple[Pack, dict[str, str]], tmp_path: Path) -> None:
    names = (
        "train/dt=2024-01-02/cat/1.jpg",
        "train/dt=2024-01-01/cat/2.jpg",
        "validation/dt=2024-01-02/dog/3.jpg",
        "test/cat/dt=2024-01-02/4.jpg",
    )
    source = pack[0](fill(tmp_path / "in", *names))
    assert list_intervals(source, home=tmp_path, **pack[1]) == ["2024-01-01", "2024-01-02"]
    files, _ = listed(source, tmp_path, "2024-01-02", **pack[1])
    assert sorted(labels(files)) == [("1.jpg", "train", "cat"), ("3.jpg", "val", "dog"), ("4.jpg", "test", "cat")]
    assert {file.event_timestamp for file in files} == {datetime(2024, 1, 2, tzinfo=UTC)}
    assert labels(listed(source, tmp_path, "2024-01-01", **pack[1])[0]) == [("2.jpg", "train", "cat")]


def test_days_above_splits(tmp_path: Path) -> None:
    root = fill(tmp_path / "in", "dt=2024-01-01/train/cat/1.jpg", "dt=2024-01-02/test/cat/2.jpg", "dt=2024-01-03/x/3")
    source = Source(uri=str(root))
    assert list_intervals(source, home=tmp_path) == ["2024-01-01", "2024-01-02", "2024-01-03"]
    assert labels(listed(source, tmp_path, "2024-01-02")[0]) == [("2.jpg", "test", "cat")]
    assert labels(listed(source, tmp_path, "2024-01-03")[0]) == [("3", None, "x")]
    assert listed(source, tmp_path, "2024-01-04")[0] == []


def test_dated_and_undated_together(tmp_path: Path) -> None:
    source = Source(uri=str(fill(tmp_path / "in", "cat/1.jpg", "cat/dt=2024-01-01/2.jpg", "dog/dt=2024-01-01/3.jpg")))
    assert list_intervals(source, home=tmp_path) == ["2024-01-01", "static"]
    assert labels(listed(source, tmp_path)[0]) == [("1.jpg", None, "cat")]
    assert len(listed(source, tmp_path, "2024-01-01")[0]) == 2


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("car/1", "train/2", "test/3"), [("1", None, "car"), ("2", None, "train"), ("3", None, "test")]),
        (("car/1", "train/freight/2"), [("1", None, "car"), ("2", None, "train")]),
        (("Train/cat/1", "VAL/cat/2"), [("1", "train", "cat"), ("2", "val", "cat")]),
        (("train/1", "test/2"), [("1", None, "train"), ("2", None, "test")]),
    ],
)
def test_train_may_be_a_split_or_a_vehicle(names: tuple[str, ...], expected: list[object], tmp_path: Path) -> None:
    files, _ = listed(Source(uri=str(fill(tmp_path / "in", *names))), tmp_path)
    assert sorted(labels(files), key=str) == sorted(expected, key=str)


def test_nothing_is_dropped_in_silence(tmp_path: Path) -> None:
    names = ("README.md", "train/notes.txt", "train/cat/1.jpg", "train/cat/Thumbs.db", "test/dog/2", "test/.hidden/x")
    root = fill(tmp_path / "in", *names, "train/empty/")
    files, notes = listed(Source(uri=str(root)), tmp_path)
    refused = {Path(file.uri).name: file.reason for file in files if file.reason}
    assert refused == {"README.md": "no_label", "notes.txt": "no_label"}
    text = "\n".join(notes)
    assert "train/empty: no files" in text
    assert "2 hidden or system files left out" in text


@pytest.mark.parametrize("hidden", [".DS_Store", "cat/.DS_Store", ".thumbs/1.png", "cat/Thumbs.db"])
def test_a_day_with_hidden_files_only_is_none(hidden: str, tmp_path: Path) -> None:
    root = fill(tmp_path / "in", "dt=2024-01-01/cat/1", "dt=2024-01-01/dog/2", f"dt=2024-01-02/{hidden}")
    assert list_intervals(Source(uri=str(root)), home=tmp_path) == ["2024-01-01"]


def test_a_link_that_leads_nowhere_is_noted(tmp_path: Path) -> None:
    root = fill(tmp_path / "in", "cat/1", "dog/2")
    for link in (root / "gone", root / "cat" / "gone"):
        link.symlink_to(tmp_path / "nothing")
    files, notes = listed(Source(uri=str(root)), tmp_path)
    assert labels(files) == [("1", None, "cat"), ("2", None, "dog")]
    assert f"2 links lead nowhere and are left out, such as {root / 'cat' / 'gone'}" in notes


def test_a_stray_file_beside_days_is_noted(tmp_path: Path) -> None:
    root = fill(tmp_path / "in", "dt=2024-01-01/cat/1", "dt=2024-01-01/stray", "LICENSE")
    files, notes = listed(Source(uri=str(root)), tmp_path, "2024-01-01")
    assert [(Path(file.uri).name, file.reason) for file in files] == [("stray", "no_label"), ("1", None)]
    assert "LICENSE: in no class folder" in notes[0]


def test_a_broken_day_is_named(tmp_path: Path) -> None:
    source = Source(uri=str(fill(tmp_path / "in", "dt=2024-13-01/cat/1")))
    with pytest.raises(SourceError, match="dt=2024-13-01 is no date"):
        list_intervals(source, home=tmp_path)


def test_modification_times_mean_nothing_but_a_version(tmp_path: Path) -> None:
    root = fill(tmp_path / "in", "cat/1")
    before = listed(Source(uri=str(root)), tmp_path)[0][0]
    os.utime(root / "cat/1", (1, 1))
    after = listed(Source(uri=str(root)), tmp_path)[0][0]
    assert before.event_timestamp == after.event_timestamp
    assert before.version != after.version


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    root = fill(tmp_path / "in", "cat/1")
    (root / "cat" / os.fsdecode(b"caf\xe9.jpg")).write_bytes(b"x")
    files, _ = listed(Source(uri=str(root)), tmp_path)
    assert [file.reason for file in files] == [None, "bad_name"]
    files[1].uri.encode()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: "", "source.uri is empty"),
        (lambda root: str(root / "none"), "no such file or folder"),
        (lambda root: str(fill(root, "x.txt") / "x.txt"), "expected a folder or one of"),
        (lambda root: str(fill(root, "x.jpg", "y.jpg")), "no class folders"),
        (lambda root: str(fill(root, "x.tar") / "x.tar"), "cannot be read as a tar or zip"),
        (lambda root: str(fill(root, "x.tar.gz") / "x.tar.gz"), "expected a tar compressed"),
        (lambda root: str(fill(root, "a.tar", "b.tar")), "name the one to read"),
        (lambda root: "gs://bucket", "expected a folder or an s3://"),
    ],
)
def test_sources_that_make_no_sense(make: Callable[[Path], str], message: str, tmp_path: Path) -> None:
    root = tmp_path / "in"
    root.mkdir()
    with pytest.raises(SourceError, match=message):
        listed(Source(uri=make(root)), tmp_path)


def test_a_relative_path_starts_at_home(tmp_path: Path) -> None:
    fill(tmp_path / "data" / "mine", "cat/1")
    assert labels(listed(Source(uri="data/mine"), tmp_path)[0]) == [("1", None, "cat")]


def test_a_folder_that_links_to_its_parent_ends(tmp_path: Path) -> None:
    root = fill(tmp_path / "in", "cat/1", "dog/2")
    (root / "cat" / "loop").symlink_to(root)
    source = Source(uri=str(root))
    assert list_intervals(source, home=tmp_path) == ["static"]
    files, _ = listed(source, tmp_path)
    assert [Path(file.uri).name for file in files] == ["1", "loop", "2"]
    with pytest.raises(ImageError) as caught:
        Reader(tmp_path, None).read(files[1].uri, None, None, None)
    assert caught.value.reason == "unreadable"


def test_a_path_that_no_file_can_have(tmp_path: Path) -> None:
    with pytest.raises(ImageError) as caught:
        Reader(tmp_path, None).read("/a\0b", None, None, None)
    assert caught.value.reason == "unreadable"


def test_links_in_a_tar_are_noted(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        tar.add(fill(tmp_path / "in", "cat/1"), ".")
        link = tarfile.TarInfo("cat/passwd")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    files, notes = listed(Source(uri=str(tmp_path / "x.tar")), tmp_path)
    assert labels(files) == [("1", None, "cat")]
    assert "cat/passwd: a link" in notes[0]


# --- tables ---------------------------------------------------------------------------------------------------------

CSV = """uri,label,split,event_time,tombstone
img/1.jpg,cat,train,2024-01-01T10:00:00,
img/2.jpg,dog,valid,2024-01-01T23:30:00-05:00,false
/abs/3.jpg,cat,,2024-01-01,
s3://bucket/4.jpg,cat,test,,0
img/1.jpg,,,2024-01-03,true
"""


def test_csv_table(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(CSV)
    source = Source(uri=str(tmp_path / "t.csv"), timezone="Europe/Berlin")
    # A day in Berlin begins on the day before in UTC; half past eleven in New York is the next day.
    days = ["2023-12-31", "2024-01-01", "2024-01-02", "static"]
    assert list_intervals(source, home=tmp_path) == days
    (one,), _ = listed(source, tmp_path, "2024-01-01")
    assert (one.uri, one.label, one.split) == (str(tmp_path / "img/1.jpg"), "cat", "train")
    assert one.event_timestamp == datetime(2024, 1, 1, 9, tzinfo=UTC)
    files, _ = listed(source, tmp_path, "2024-01-02")
    assert [(file.split, file.label, file.tombstone) for file in files] == [("val", "dog", False), (None, None, True)]
    (undated,), _ = listed(source, tmp_path)
    assert undated.uri == "s3://bucket/4.jpg"


def test_parquet_table_with_real_times(tmp_path: Path) -> None:
    table = pa.table(
        {
            "source_uri": ["a.jpg", "b.jpg"],
            "label": ["x", "y"],
            "event_timestamp": pa.array([datetime(2024, 5, 1, 1), None], pa.timestamp("us")),
            "extra": [1, 2],
        }
    )
    pq.write_table(table, tmp_path / "t.parquet")
    source = Source(uri=str(tmp_path / "t.parquet"))
    assert list_intervals(source, home=tmp_path) == ["2024-05-01", "static"]
    files, notes = listed(source, tmp_path, "2024-05-01")
    assert labels(files) == [("a.jpg", None, "x")]
    assert "columns not used: extra" in notes[0]


def test_a_folder_with_a_manifest_is_a_table(tmp_path: Path) -> None:
    fill(tmp_path / "in", "img/1.jpg")
    (tmp_path / "in" / "manifest.csv").write_text("uri,label\nimg/1.jpg,cat\nimg/2.jpg,dog\n")
    files, _ = listed(Source(uri=str(tmp_path / "in")), tmp_path)
    assert labels(files) == [("1.jpg", None, "cat"), ("2.jpg", None, "dog")]
    with pytest.raises(ImageError) as caught:
        Reader(tmp_path, None).read(files[1].uri, None, None, None)
    assert caught.value.reason == "missing_file"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no column 'uri'"),
        ("uri,class_name\nx,y\n", "no column 'label'; it has uri, class_name"),
        ("uri,label,split\nx,y,training set\n", "row 2, split = 'training set': expected train, val or test"),
        ("uri,label,event_time\nx,y,\nz,y,yesterday\n", "row 3, event_time = 'yesterday'"),
        ("uri,label\nx,y,z\n", "row 2 has 3 cells"),
        ("uri,label\n,y\n", "row 2, uri = ''"),
        ("uri,label\nhttp://x/y.jpg,y\n", "row 2, uri = 'http://x/y.jpg': expected a path or an s3:// URI"),
        ("uri,label,tombstone\nx,y,maybe\n", "row 2, tombstone = 'maybe'"),
        ("uri,path,label\nx,x,y\n", "uri and path mean the same"),
    ],
)
def test_rows_that_make_no_sense_are_named(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(SourceError, match=message):
        listed(Source(uri=str(tmp_path / "t.csv")), tmp_path)


def test_a_row_without_label_is_quarantined(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("uri,label\nx.jpg,\n")
    (file,), _ = listed(Source(uri=str(tmp_path / "t.csv")), tmp_path)
    assert file.reason == "no_label"
    assert "row 2" in (file.detail or "")


def test_table_in_s3(s3_endpoint, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    storage = open_storage(f"s3://{s3_endpoint.bucket()}/data", endpoint_url=s3_endpoint.url)
    storage.write("manifest.csv", b"uri,label\nimg/1.jpg,cat\n")
    storage.write("img/1.jpg", b"bytes")
    (file,), _ = listed(Source(uri=storage.uri), tmp_path, endpoint_url=s3_endpoint.url)
    assert file.uri == f"{storage.uri}/img/1.jpg"
    assert Reader(tmp_path, s3_endpoint.url).read(file.uri, None, None, None) == b"bytes"


def test_a_named_pipe_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ImageError) as caught:
        Reader(tmp_path, None).read(str(tmp_path / "pipe"), None, None, None)
    assert caught.value.reason == "unreadable"


@pytest.mark.parametrize(
    "error", [OSError(errno.EIO, "EIO"), OSError(errno.EMFILE, "EMFILE"), PermissionError(13, "no"), MemoryError()]
)
def test_the_machines_failures_are_not_the_files(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> int:
        raise error

    fill(tmp_path, "1.png")
    monkeypatch.setattr(os, "open", fail)
    with pytest.raises(PlatformError, match=r"1\.png"):
        Reader(tmp_path, None).read(str(tmp_path / "1.png"), None, None, None)


def test_a_damaged_zip_member_is_refused_alone(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("cat/1", b"first" * 20)
        file.writestr("dog/2", b"second" * 20)
    path.write_bytes(path.read_bytes().replace(b"firstfirst", b"fjrstfirst"))
    files, _ = listed(Source(uri=str(path)), tmp_path)
    reader = Reader(tmp_path, None)
    with pytest.raises(ImageError) as caught:
        reader.read(files[0].uri, files[0].archive, None, None)
    assert caught.value.reason == "unreadable"
    assert reader.read(files[1].uri, files[1].archive, None, None) == b"second" * 20
