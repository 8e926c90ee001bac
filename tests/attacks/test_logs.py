"""People put keys into queries, where they do nothing. No log keeps them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from example_packages import coloured
from front_door import PATH, Door
from serving_platform import ask, wait_until
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from pipelines.adapters.gateway import access_log

KEY = "dk_a-key-that-somebody-put-into-the-query"


def test_no_log_has_a_query(door: Door) -> None:
    for port in (door.port, door.served.port):
        assert ask(port, f"{PATH}?api_key={KEY}", coloured("red"))[0] == 200
        for path, status in (("/readyz", 200), ("/v1/models/colours/nothing", 404)):
            assert ask(port, f"{path}?api_key={KEY}")[0] == status
        with connect(f"ws://127.0.0.1:{port}/v1/models/colours/stream?api_key={KEY}") as stream:
            stream.send(coloured("red"))
            stream.recv(timeout=10)
        with pytest.raises(InvalidStatus):
            connect(f"ws://127.0.0.1:{port}/v1/models/colours/nothing?api_key={KEY}")
    last = "the-last-of-this-test"
    ask(door.port, f"/nowhere?api_key={KEY}", headers={"X-Request-ID": last})
    log = access_log(door.settings)
    wait_until(lambda: last in log.read_text())  # Envoy writes every ten seconds
    paths = [json.loads(line)["path"] for line in log.read_text().splitlines()]
    assert {PATH, "/readyz", "/v1/models/colours/stream", "/nowhere"} <= set(paths)
    for file in (door.served.log, *_logs(door.settings.home)):
        assert KEY not in file.read_text(), file


def _logs(home: Path) -> list[Path]:
    found = [path for path in home.rglob("*") if path.suffix in (".log", ".jsonl")]
    assert len(found) >= 2
    return found
