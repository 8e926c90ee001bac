"""A step's code identity follows imports, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.core.closure import closure, code_digest


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    package = tmp_path / "pipelines"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "one.py").write_text(
        "def f():\n    from pipelines import two\n    import numpy\n    return two, numpy\n"
    )
    (package / "two.py").write_text("X = 1\n")
    (package / "unrelated.py").write_text("Y = 1\n")
    return tmp_path


def test_imports_inside_functions_count(repository: Path) -> None:
    modules, foreign = closure(["pipelines.one"], repository)
    assert {"pipelines.one", "pipelines.two"} <= set(modules)
    assert "pipelines.unrelated" not in modules
    assert foreign == {"numpy"}


def test_only_the_closure_changes_the_digest(repository: Path) -> None:
    before = code_digest(["pipelines.one"], repository)
    (repository / "pipelines" / "unrelated.py").write_text("Y = 2\n")
    (repository / "README.md").write_text("new")
    assert code_digest(["pipelines.one"], repository) == before


def test_a_changed_dependency_changes_the_digest(repository: Path) -> None:
    before = code_digest(["pipelines.one"], repository)
    changed = repository / "pipelines" / "two.py"
    changed.unlink()
    (repository / "pipelines" / "two").mkdir()
    (repository / "pipelines" / "two" / "__init__.py").write_text("X = 2\n")
    assert code_digest(["pipelines.one"], repository) != before
