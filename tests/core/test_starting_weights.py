"""What a training starts from is part of what it is, wherever the file lies."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from pipelines.core.recipe import Model
from pipelines.core.starting_weights import identity, path_of


def test_a_file_is_known_by_its_bytes_and_torchvisions_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "start.pt").write_bytes(b"weights")
    digest = hashlib.sha256(b"weights").hexdigest()
    assert identity(Model(weights="~/start.pt")) == identity(Model(weights=str(tmp_path / "start.pt"))) == digest
    assert identity(Model(weights="torchvision")) == "torchvision"
    assert path_of(Model(weights="torchvision")) is None
    assert identity(Model()) == identity(Model(weights="~/missing.pt")) == ""
