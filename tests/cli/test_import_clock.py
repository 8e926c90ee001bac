"""Imports are told apart from the work of a step."""

from __future__ import annotations

import importlib
import sys
import time
from pathlib import Path

import pytest

from pipelines.cli.import_clock import import_clock


def test_only_what_is_really_loaded_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "slow_outer.py").write_text("import time\ntime.sleep(0.05)\nimport slow_inner\n")
    (tmp_path / "slow_inner.py").write_text("import time\ntime.sleep(0.05)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    try:
        with import_clock() as clock:
            importlib.import_module("slow_outer")
            assert clock.seconds >= 0.1  # the inner module counts once, within the outer
            counted = clock.seconds
            import slow_outer  # noqa: F401

            time.sleep(0.01)
            assert clock.seconds == counted
    finally:
        for name in ("slow_outer", "slow_inner"):
            sys.modules.pop(name, None)
