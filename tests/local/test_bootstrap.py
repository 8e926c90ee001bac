"""The bootstrap's decisions: what it refuses before downloading, when it does nothing, what it hands to uv."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from pipelines.settings import REPOSITORY

SCRIPT = REPOSITORY / "infra" / "bootstrap.py"


@pytest.fixture
def bootstrap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module, over an empty clone."""
    spec = importlib.util.spec_from_file_location("bootstrap", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (tmp_path / "requirements.lock").write_text("uv==1.0\nnumpy==2.0\n")
    (tmp_path / "pyproject.toml").write_text("")
    for name, value in {
        "REPOSITORY": tmp_path,
        "VENV": tmp_path / ".venv",
        "LOCK": tmp_path / "requirements.lock",
        "STAMP": tmp_path / ".venv" / "darkroom-installed",
        "UNFINISHED": tmp_path / ".venv" / "darkroom-unfinished",
    }.items():
        monkeypatch.setattr(module, name, value)
    return module


@pytest.mark.parametrize(("system", "machine"), [("darwin", "arm64"), ("linux", "aarch64"), ("win32", "AMD64")])
def test_other_machines_are_refused_before_anything_is_downloaded(
    bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch, system: str, machine: str
) -> None:
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(bootstrap.platform, "machine", lambda: machine)
    monkeypatch.setattr(bootstrap.subprocess, "run", lambda *_a, **_k: pytest.fail("something was started"))
    assert bootstrap.main() == 2


def test_too_little_disk_is_said_with_figures(bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 2e9}))
    with pytest.raises(bootstrap.Stop, match=r"2\.0 GB are free, the installation takes 9\.9 GB"):
        bootstrap.check_machine()


def test_musl_is_refused(bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap.platform, "libc_ver", lambda: ("", ""))
    with pytest.raises(bootstrap.Stop, match=r"glibc 2\.28"):
        bootstrap.check_machine()


def test_an_unsupported_python_hands_over_or_says_so(
    bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 9, 1))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(bootstrap.Stop, match=r"Python 3\.11"):
        bootstrap.better_python()
    shim = tmp_path / "python3.11"
    shim.write_text("#!/bin/sh\nexit 127\n")
    shim.chmod(0o755)
    with pytest.raises(bootstrap.Stop):
        bootstrap.better_python()
    shim.unlink()
    shim.symlink_to(sys.executable)
    assert bootstrap.better_python() == str(shim)


def test_a_stamp_counts_for_this_lock_in_this_place_only(bootstrap: ModuleType, tmp_path: Path) -> None:
    assert not bootstrap.is_done()
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "python").touch()
    bootstrap.STAMP.write_text(bootstrap.digest())
    assert bootstrap.is_done()
    bootstrap.LOCK.write_text("uv==1.1\n")
    assert not bootstrap.is_done()


def test_an_environment_is_kept_unless_its_installation_was_cut_short(bootstrap: ModuleType) -> None:
    (bootstrap.VENV / "bin").mkdir(parents=True)
    (bootstrap.VENV / "bin" / "python").symlink_to(sys.executable)
    kept = bootstrap.VENV / "kept"
    kept.touch()
    bootstrap.make_venv()
    assert kept.exists()
    bootstrap.UNFINISHED.touch()
    bootstrap.make_venv()
    assert not kept.exists()
    assert not bootstrap.UNFINISHED.exists()


def test_pips_settings_reach_uv(bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / ".venv").mkdir()
    monkeypatch.setenv("PIP_INDEX_URL", "https://index.example/simple")
    monkeypatch.setenv("PIP_CERT", "/certificates.pem")
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    for name in ("UV_DEFAULT_INDEX", "SSL_CERT_FILE"):
        monkeypatch.delenv(name, raising=False)
    env = bootstrap.uv_environment(sys.executable)
    assert env["UV_DEFAULT_INDEX"] == "https://index.example/simple"
    assert env["SSL_CERT_FILE"] == "/certificates.pem"
    assert "PYTHONDONTWRITEBYTECODE" not in env


def test_the_lock_is_a_plain_list_with_the_installer_in_it() -> None:
    lines = (REPOSITORY / "requirements.lock").read_text().splitlines()
    assert sum(line.startswith("uv==") for line in lines) == 1
    assert not [line for line in lines if "://" in line]


def test_make_help_lists_the_targets() -> None:
    shown = subprocess.run(["make", "help"], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    assert {"run", "test", "test-all", "up", "down"} <= {line.split()[1] for line in shown.splitlines()}
