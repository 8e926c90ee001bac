"""One served bento for all tests of a process's own protocols."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from example_packages import write_package
from served_bento import Served, serve

from pipelines.adapters.packaging import build_bento
from pipelines.core.model_package import ModelPackage


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> ModelPackage:
    return write_package(tmp_path_factory.mktemp("package") / "package")


@pytest.fixture(scope="session")
def bento(package: ModelPackage, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_bento(package, version=7, out=tmp_path_factory.mktemp("bento") / "bento")


@pytest.fixture(scope="session")
def served(bento: Path, package: ModelPackage) -> Iterator[Served]:
    with serve(bento, package) as found:
        yield found
