"""Archives are unpacked whole, and never beyond their folder."""

from __future__ import annotations

import ast
import io
import tarfile
from pathlib import Path

import pytest

from pipelines.core.archives import unpack
from pipelines.core.errors import IntegrityError

REPOSITORY = Path(__file__).resolve().parents[2]


def _archive(path: Path, *members: tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w") as tar:
        for member in members:
            member.size = 4 if member.isfile() else 0
            tar.addfile(member, io.BytesIO(b"data") if member.isfile() else None)
    return path


def _member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, link
    return member


def test_files_and_folders_come_out(tmp_path: Path) -> None:
    members = (_member("a", tarfile.DIRTYPE), _member("a/b.txt"), _member("c/d/e.txt"), _member("./f.txt"))
    unpack(_archive(tmp_path / "good.tar", *members), tmp_path / "out")
    found = {
        one.relative_to(tmp_path / "out").as_posix(): one.read_bytes() for one in (tmp_path / "out").rglob("*.txt")
    }
    assert found == {"a/b.txt": b"data", "c/d/e.txt": b"data", "f.txt": b"data"}


@pytest.mark.parametrize(
    "member",
    [
        _member("../outside.txt"),
        _member("a/../../outside.txt"),
        _member("/tmp/outside.txt"),
        _member("link", tarfile.SYMTYPE, "/etc/passwd"),
        _member("hard", tarfile.LNKTYPE, "a.txt"),
        _member("device", tarfile.CHRTYPE),
    ],
    ids=lambda member: member.name,
)
def test_what_lies_elsewhere_or_is_no_file_is_refused(tmp_path: Path, member: tarfile.TarInfo) -> None:
    archive = _archive(tmp_path / "bad.tar", member)
    with pytest.raises(IntegrityError, match=r"bad\.tar"):
        unpack(archive, tmp_path / "in" / "out")
    assert not list(tmp_path.rglob("outside.txt"))


def test_no_code_counts_on_a_later_python_than_debian_12_has() -> None:
    """`filter=` of extract and extractall came with 3.11.4; a deployment failed on 3.11.2."""
    for tier in ("pipelines", "bentos", "dags", "infra", "tests"):
        for path in (REPOSITORY / tier).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                    taken = {one.arg for one in node.keywords}
                    assert not (node.func.attr in ("extract", "extractall") and "filter" in taken), path
