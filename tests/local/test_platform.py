"""The platform by its commands, without its heavy parts: up, up again, kills, down. The whole of it is in e2e."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import psycopg
import pytest
from example_packages import coloured

from pipelines.adapters import database
from pipelines.core.anchors import newest, parse
from pipelines.core.errors import UserError
from pipelines.core.processes import is_zombie, marked
from pipelines.core.storage import open_storage
from pipelines.local import platform, resources
from pipelines.local.process import PLATFORM_MARK
from pipelines.settings import Settings

WITHOUT = ("--without", "airflow", "--without", "mlflow", "--without", "step-host")


def darkroom(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pipelines.cli.main", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)


def processes() -> dict[str, dict[str, Any]]:
    return {one["name"]: one for one in json.loads(darkroom("status", "--json").stdout)["processes"]}


def until(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition never came true"
        time.sleep(0.05)


@pytest.fixture
def ended(home_settings: Settings) -> Iterator[Settings]:
    yield home_settings
    platform.down(home_settings)
    assert not list(marked(PLATFORM_MARK, str(home_settings.home)))


def gateway_answers(settings: Settings) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", settings.gateway_port, timeout=2)
    try:
        connection.request("GET", "/v1/classify")
        return connection.getresponse().status >= 400
    except OSError:
        return False
    finally:
        connection.close()


def similar_answers(settings: Settings) -> tuple[int, str]:
    """What the gateway says of a search, by status and reason."""
    connection = http.client.HTTPConnection("127.0.0.1", settings.gateway_port, timeout=20)
    try:
        connection.request("POST", "/v1/similar", coloured("red"), settings.platform_authorization)
        response = connection.getresponse()
        return response.status, json.loads(response.read())["reason"]
    finally:
        connection.close()


@pytest.mark.heavy
def test_up_kills_and_down(ended: Settings) -> None:
    first = darkroom("up", *WITHOUT)
    assert first.returncode == 0, first.stderr
    assert gateway_answers(ended)
    until(lambda: processes()["similar"]["state"] == "ready")  # the platform does not wait for it
    before = processes()
    assert {"keeper", "supervisor", "postgres", "envoy", "similar"} <= before.keys()
    assert all(one["state"] == "ready" and one["memory"] > 0 for one in before.values())

    again = darkroom("up", *WITHOUT)
    assert "was up" in again.stdout
    assert processes()["supervisor"]["pid"] == before["supervisor"]["pid"]

    os.kill(before["postgres"]["pid"], signal.SIGKILL)
    until(lambda: processes()["postgres"].get("restarts") == 1 and processes()["postgres"]["state"] == "ready")
    with psycopg.connect(ended.database_url("darkroom")) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)

    os.kill(before["similar"]["pid"], signal.SIGKILL)
    until(lambda: processes()["similar"].get("restarts") == 1 and processes()["similar"]["state"] == "ready")
    until(lambda: similar_answers(ended) == (404, "nothing_stored"))

    os.kill(before["supervisor"]["pid"], signal.SIGKILL)
    assert darkroom("up", *WITHOUT).returncode == 0
    after = processes()
    assert after["supervisor"]["pid"] != before["supervisor"]["pid"]
    assert after["keeper"]["pid"] == before["keeper"]["pid"]
    assert gateway_answers(ended)

    for name in ("keeper", "supervisor"):
        os.kill(after[name]["pid"], signal.SIGKILL)
    assert darkroom("up", *WITHOUT).returncode == 0
    assert gateway_answers(ended)

    last = processes()
    assert json.loads(darkroom("status", "--json").stdout)["troubles"] == []
    row = database.record(ended.database_url("darkroom"), "", "key_created", {}, "ada@lab")
    assert darkroom("down").returncode == 0
    anchor = newest(open_storage(ended.store_uri))
    assert anchor is not None
    assert parse(anchor.data, anchor.key).hash == row.hash  # what was written since the last minute, too
    assert all(is_zombie(one["pid"]) for one in last.values())
    assert processes() == {}
    assert darkroom("down").stdout.startswith("the platform was not up")


def test_what_is_missing_is_said_before_anything_starts(
    home_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DARKROOM_MIN_MEMORY_MB", "99999999")
    refused = darkroom("up")
    assert refused.returncode == 2
    assert "DARKROOM_MIN_MEMORY_MB" in refused.stderr
    monkeypatch.setenv("DARKROOM_MIN_DISK_MB", "99999999")
    refused = darkroom("up")
    assert refused.returncode == 2
    assert str(home_settings.home) in refused.stderr
    assert "DARKROOM_MIN_DISK_MB" in refused.stderr
    monkeypatch.setenv("DARKROOM_MIN_DISK_MB", "lots")
    assert "DARKROOM_MIN_DISK_MB='lots'" in darkroom("up").stderr


def test_a_home_that_cannot_be_made_is_named(home_settings: Settings) -> None:
    (home_settings.home / "file").write_text("")
    with pytest.raises(UserError, match="DARKROOM_HOME"):
        resources.check_disk(replace(home_settings, home=home_settings.home / "file" / "home"))


def test_logs_names_what_there_is(home_settings: Settings) -> None:
    folder = home_settings.home / "logs"
    folder.mkdir()
    (folder / "envoy.log").write_text("one\ntwo\n")
    assert darkroom("logs", "envoy", "-n", "1").stdout == "two\n"
    assert darkroom("logs").stdout == "envoy: one\nenvoy: two\n"
    missing = darkroom("logs", "nothing")
    assert missing.returncode == 2
    assert "envoy" in missing.stderr
