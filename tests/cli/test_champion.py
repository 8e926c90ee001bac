"""Who the gate's champion is, what was rolled back from, and who said so: registry, deployments and audit log."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from example_packages import write_package
from serving_platform import ACTOR, VARIABLE, in_own_schema

from pipelines.adapters import database
from pipelines.adapters.tracking import MlflowRegistry
from pipelines.cli.model_registry import AuditedRegistry
from pipelines.cli.requests import RolledBack
from pipelines.cli.wiring.evaluation import champion_of
from pipelines.core import package_store
from pipelines.core.datasets import snapshot_key
from pipelines.core.deployments import Build, Deployment, ServingSpec
from pipelines.core.model_package import ModelPackage
from pipelines.core.ports import Registration
from pipelines.core.storage import open_storage
from pipelines.settings import Settings

MODEL = "championed"


@pytest.fixture
def url(postgres_settings: Settings, monkeypatch: pytest.MonkeyPatch) -> str:
    found = in_own_schema(postgres_settings)
    database.migrate(found)
    monkeypatch.setenv(VARIABLE, found)
    return found


def _registration(package: ModelPackage) -> Registration:
    return Registration(
        model=MODEL, package=package, tracking_run_id="", parameters={}, metrics={}, history=[], pictures=[],
        tags={"package": package.digest, "run": "train/x"},
    )  # fmt: skip


@pytest.fixture
def packages(postgres_settings: Settings, tmp_path: Path) -> list[ModelPackage]:
    """Of versions 1 and 2, which are registered and kept."""
    storage, registry = open_storage(postgres_settings.store_uri), MlflowRegistry(postgres_settings)
    storage.write(snapshot_key("0" * 64), b"a snapshot")
    made = []
    for number in (1, 2):
        package = write_package(
            tmp_path / str(number), name=MODEL, weights=number * np.eye(3, dtype=np.float32), run_id="train/x"
        )
        package_store.put(storage, package)
        assert registry.register(_registration(package)).version == number
        made.append(package)
    return made


def _serve(url: str, package: ModelPackage, version: int, kind: str = "deploy") -> Deployment:
    digest = package.digest
    build = Build(model=MODEL, version=version, package_digest=digest, bento_digest=digest, bento_key=f"{version}.tar")
    asked = database.request_deployment(url, build, ServingSpec(), kind=kind, actor=ACTOR)
    assert database.mark_live(url, asked, actor=ACTOR)
    return asked


def test_the_champion_is_what_serves_whatever_the_alias_says(
    url: str, postgres_settings: Settings, packages: list[ModelPackage]
) -> None:
    """Whoever deployed version 2 was killed before the alias moved."""
    settings, registry = postgres_settings, MlflowRegistry(postgres_settings)
    storage = open_storage(settings.store_uri)
    assert champion_of(settings, storage, registry, "nothing") is None
    registry.promote(MODEL, 1)
    champion = champion_of(settings, storage, registry, MODEL)
    assert champion is not None
    assert champion.version == 1  # nothing serves: the alias is all there is
    _serve(url, packages[1], 2)
    champion = champion_of(settings, storage, registry, MODEL)
    assert champion is not None
    assert (champion.version, champion.package.digest) == (2, packages[1].digest)
    alias = registry.alias(MODEL, "champion")
    assert alias is not None
    assert alias.version == 2
    # And content that was rolled back from is found again by what it is, until it serves again.
    rolled_back = RolledBack(settings, registry)
    assert rolled_back.find(MODEL, packages[1].content_digest) is None
    _serve(url, packages[0], 1, kind="rollback")
    withdrawn = rolled_back.find(MODEL, packages[1].content_digest)
    assert withdrawn is not None
    assert (withdrawn.version, withdrawn.returned_to) == (2, 1)
    assert rolled_back.find(MODEL, packages[0].content_digest) is None
    _serve(url, packages[1], 2, kind="promote")
    assert rolled_back.find(MODEL, packages[1].content_digest) is None


def test_every_version_and_every_move_of_the_champion_leaves_one_row(
    url: str, postgres_settings: Settings, packages: list[ModelPackage]
) -> None:
    ada, bob = (AuditedRegistry(postgres_settings, actor) for actor in ("ada@lab", "bob@lab"))
    for package in (*packages, packages[0]):
        ada.register(_registration(package))
    for registry, version in ((ada, 1), (ada, 1), (bob, 2), (ada, 1)):
        registry.promote(MODEL, version)
    rows = [(one.event, one.detail["version"], one.actor) for one in database.history(url, MODEL)]
    assert rows == [
        ("registered", 1, "ada@lab"),
        ("registered", 2, "ada@lab"),
        ("champion", 1, "ada@lab"),
        ("champion", 2, "bob@lab"),
        ("champion", 1, "ada@lab"),
    ]
    assert next(iter(database.history(url))).detail["run"] == "train/x"


def test_a_process_killed_before_the_row_leaves_it_to_the_next_try(
    url: str, postgres_settings: Settings, packages: list[ModelPackage]
) -> None:
    MlflowRegistry(postgres_settings).promote(MODEL, 2)
    AuditedRegistry(postgres_settings, "bob@lab").promote(MODEL, 2)
    assert [(one.event, one.detail["version"]) for one in database.history(url)] == [("champion", 2)]
