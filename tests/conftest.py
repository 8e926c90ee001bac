"""Fixtures every folder may use: a home and ports of a test's own, and a real PostgreSQL."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from homes import settings_under

from pipelines.local import postgres, secrets
from pipelines.local.ports import free_port
from pipelines.settings import Settings

# Tests never look at, or disturb, the platform of whoever runs them.
for _name in [name for name in os.environ if name.startswith("DARKROOM_")]:
    del os.environ[_name]

# Fast to heavy: folders in this order, then tests marked heavy, then full ones.
_ORDER = (
    "architecture",
    "core",
    "cli",
    "local",
    "steps",
    "training",
    "adapters",
    "bentos",
    "attacks",
    "dags",
    "e2e",
    "benchmarks",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One run, fast tests first: a mistake shows early, and the heavy end is reached only by what works."""
    here = Path(__file__).parent

    def weight(item: pytest.Item) -> tuple[int, int]:
        folder = item.path.relative_to(here).parts[0]
        place = _ORDER.index(folder) if folder in _ORDER else 0
        heavy = 2 * (item.get_closest_marker("full") is not None) + (item.get_closest_marker("heavy") is not None)
        return heavy, place

    items.sort(key=weight)


@pytest.fixture
def home_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """An empty home with free ports; processes that the test starts find the same by their environment."""
    settings = settings_under(tmp_path / "home")
    monkeypatch.setenv("DARKROOM_HOME", str(settings.home))
    monkeypatch.setenv("DARKROOM_GATEWAY_PORT", str(settings.gateway_port))
    return settings


@pytest.fixture(scope="session")
def postgres_settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """A running PostgreSQL with every role, database and extension, shared by the session's tests."""
    settings = settings_under(tmp_path_factory.mktemp("postgres") / "home")
    secrets.ensure(settings)
    server = postgres.start(settings)
    try:
        yield settings
    finally:
        postgres.stop(server)


@dataclass
class S3Endpoint:
    """A server that speaks S3 on loopback."""

    url: str

    def bucket(self) -> str:
        """A new bucket of a test's own."""
        import boto3

        name = f"bucket-{uuid.uuid4().hex[:12]}"
        boto3.client("s3", endpoint_url=self.url, region_name="us-east-1").create_bucket(Bucket=name)
        return name


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[S3Endpoint]:
    """A running S3 server; its credentials are in the environment while it runs."""
    from moto.server import ThreadedMotoServer

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        port = free_port()
        server = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
        server.start()
        try:
            yield S3Endpoint(url=f"http://127.0.0.1:{port}")
        finally:
            server.stop()
