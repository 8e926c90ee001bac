"""The thread that brings the log to the store, and a whole way: a key's request through the gateway into Parquet."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from example_packages import coloured
from logged_predictions import record, spooled
from serving_platform import VARIABLE, ask, deploy, in_own_schema, make_build, serving, wait_until

from pipelines import settings as settings_module
from pipelines.adapters import database
from pipelines.core.access import new_key
from pipelines.core.errors import UserError
from pipelines.core.prediction_spool import FORMAT
from pipelines.core.predictions import Selection, newest, read
from pipelines.core.storage import open_storage
from pipelines.local.identity import identity
from pipelines.local.ports import free_port
from pipelines.local.predictions import Collecting, due
from pipelines.settings import Settings


@contextmanager
def collecting(settings: Settings) -> Iterator[Collecting]:
    running = Collecting(settings, period_s=0.02, patience_s=0.0)
    running.start()
    try:
        yield running
    finally:
        running.end()


def ids(settings: Settings) -> list[str]:
    storage = open_storage(settings.store_uri, endpoint_url=settings.s3_endpoint_url)
    return [row["request_id"] for batch in read(storage, columns=["request_id"]) for row in batch.to_pylist()]


def test_what_processes_finish_is_collected(home_settings: Settings) -> None:
    with collecting(home_settings) as running:
        for number in range(2):
            spooled(home_settings.prediction_spool, [record(number)])
            wait_until(lambda number=number: len(ids(home_settings)) == number + 1)  # type: ignore[misc]
        assert running.trouble == ""


def test_the_end_collects_what_patience_has_left(home_settings: Settings) -> None:
    hourly = Collecting(home_settings, period_s=0.02, patience_s=3600)
    spooled(home_settings.prediction_spool, [record()])
    hourly.start()
    hourly.end()
    assert ids(home_settings) == ["request-0"]


def test_little_is_left_until_it_is_old_so_that_objects_are_not_small(home_settings: Settings) -> None:
    path, _ = (spooled(home_settings.prediction_spool, [record(number)]) for number in range(2))
    assert not due(home_settings.prediction_spool, 300)
    long_ago = path.stat().st_mtime - 301
    os.utime(path, (long_ago, long_ago))
    assert due(home_settings.prediction_spool, 300)
    patient = Collecting(home_settings, period_s=0.02, patience_s=300)
    patient.start()
    wait_until(lambda: len(ids(home_settings)) == 2)
    patient.end()
    assert len(list(Path(home_settings.store_uri).rglob("*.parquet"))) == 1


def test_a_store_that_is_away_is_told_once_and_waited_for(
    home_settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Path(home_settings.store_uri)
    store.write_text("")
    spooled(home_settings.prediction_spool, [record()])
    with collecting(home_settings) as running:
        wait_until(lambda: str(store) in running.trouble)
        store.unlink()
        wait_until(lambda: ids(home_settings) == ["request-0"])
        wait_until(lambda: not running.trouble)
    said = capsys.readouterr().err
    assert said.count("predictions are not collected: ") == 1
    assert said.count("predictions are collected again") == 1


def test_a_store_in_s3_that_is_away(home_settings: Settings, s3_endpoint: Any) -> None:
    remote = replace(
        home_settings, store_uri=f"s3://{s3_endpoint.bucket()}/house", s3_endpoint_url=f"http://127.0.0.1:{free_port()}"
    )
    spooled(remote.prediction_spool, [record()])
    with collecting(remote) as running:
        wait_until(lambda: "DARKROOM_S3_ENDPOINT_URL" in running.trouble)
    there = replace(remote, s3_endpoint_url=s3_endpoint.url)
    with collecting(there):
        wait_until(lambda: ids(there) == ["request-0"])


def test_a_store_that_hangs_does_not_keep_the_platform_from_ending(home_settings: Settings, s3_endpoint: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        remote = replace(home_settings, store_uri=f"s3://{s3_endpoint.bucket()}/house", s3_endpoint_url=address)
        spooled(remote.prediction_spool, [record()])
        running = Collecting(remote, period_s=0.02, patience_s=0.0)
        running.start()
        silent.accept()
        running.end(timeout_s=0.1)
        wait_until(lambda: not [one for one in threading.enumerate() if one.name == "collecting"])
    there = replace(remote, s3_endpoint_url=s3_endpoint.url)
    with collecting(there):
        wait_until(lambda: ids(there) == ["request-0"])


def test_files_of_another_version_are_told(home_settings: Settings) -> None:
    spooled(home_settings.prediction_spool, []).write_bytes(FORMAT.replace(b"1", b"2"))
    with collecting(home_settings) as running:
        wait_until(lambda: "1 files" in running.trouble and "another version of Darkroom" in running.trouble)


def test_where_nothing_is_logged_nothing_is_made(home_settings: Settings) -> None:
    with collecting(home_settings):
        pass
    assert not home_settings.prediction_spool.exists()
    assert not Path(home_settings.store_uri).exists()


# --- settings ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("DARKROOM_LOG_PREDICTIONS", "1.5"),
        ("DARKROOM_LOG_PREDICTIONS", "nan"),
        ("DARKROOM_LOG_IMAGES", "true"),
        ("DARKROOM_PREDICTION_SPOOL_MB", "15"),
        ("DARKROOM_KEEP_PREDICTIONS_DAYS", "0"),
    ],
)
def test_settings_that_make_no_sense(name: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, text)
    with pytest.raises(UserError, match=f"{name}='{text}'"):
        settings_module.load()


def test_another_share_is_another_platform(home_settings: Settings) -> None:
    assert identity(home_settings) != identity(replace(home_settings, log_predictions=0.5))


# --- the whole way -------------------------------------------------------------------------------------------------


@pytest.mark.heavy
def test_a_keys_request_leads_back_to_the_package_that_answered(
    postgres_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = in_own_schema(postgres_settings)
    monkeypatch.setenv(VARIABLE, url)
    monkeypatch.setenv("DARKROOM_ENVOY_ADMIN_PORT", str(free_port()))
    monkeypatch.setenv("DARKROOM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DARKROOM_GATEWAY_PORT", str(free_port()))
    monkeypatch.setenv("DARKROOM_LOG_PREDICTIONS", "1")
    settings = settings_module.load()
    build = make_build(settings, tmp_path, model="colours", version=1)
    key = new_key()
    before = datetime.now(UTC)
    with serving(settings):
        assert deploy(settings, build).state == "live"
        given = database.Grant(name="shop", role="predictor")
        made = database.create_key(url, key, given, actor="test")
        header = {"Authorization": f"Bearer {key}", "X-Request-ID": "order-17"}
        answer = ask(settings.gateway_port, "/v1/models/colours/classify", coloured("green"), header)[1]
    for path in settings.prediction_spool.glob("*.spool"):
        assert key.encode() not in path.read_bytes()
    with collecting(settings):
        pass
    (row,) = newest(open_storage(settings.store_uri), Selection(since=before), limit=10, columns=_COLUMNS)
    assert row["request_id"] == "order-17"  # the golden set, which proved the process, is not there
    assert row["package_digest"] == build.package_digest == answer["package_digest"]
    assert row["credential"] == made.id
    assert row["class_name"] == "green"


_COLUMNS = ("at", "request_id", "package_digest", "credential", "class_name")
