"""One front door for all attacks of a module: Envoy and a serving process with the limits that they ship with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from example_packages import write_package
from front_door import Door, front_door
from homes import settings_under

from pipelines.adapters.packaging import build_bento
from pipelines.core.limits import MAX_BODY_BYTES
from pipelines.core.model_package import ModelPackage


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> ModelPackage:
    return write_package(tmp_path_factory.mktemp("package") / "package")


@pytest.fixture(scope="session")
def bento(package: ModelPackage, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_bento(package, version=7, out=tmp_path_factory.mktemp("bento") / "bento")


@pytest.fixture(scope="module")
def door(bento: Path, package: ModelPackage, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    settings = replace(settings_under(tmp_path_factory.mktemp("door") / "home"), default_model="colours")
    with front_door(settings, bento, package, DARKROOM_MAX_BODY_BYTES=str(MAX_BODY_BYTES)) as found:
        yield found
