"""predictions list, show, export and collect; what gc frees of them."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from logged_predictions import DAY, record, spooled
from typer.testing import CliRunner

from pipelines.cli.app import app
from pipelines.core.errors import NotFound, UserError
from pipelines.core.predictions import READ, image_key
from pipelines.core.storage import LocalStorage
from pipelines.settings import Settings


def darkroom(*arguments: str) -> str:
    done = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def refused(*arguments: str) -> BaseException:
    done = CliRunner().invoke(app, list(arguments))
    assert done.exception is not None
    return done.exception


@pytest.fixture
def logged(home_settings: Settings) -> Settings:
    """Twelve predictions of two models on two days."""
    spooled(home_settings.prediction_spool, map(record, range(10)))
    others = [record(number, at=DAY + timedelta(days=1), model="digits", digest="b" * 64) for number in (20, 21)]
    spooled(home_settings.prediction_spool, others)
    assert darkroom("predictions", "collect") == "12 predictions, 0 images, 2 objects\n"
    assert darkroom("predictions", "collect") == "0 predictions, 0 images, 0 objects\n"
    return home_settings


def listed(*arguments: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(darkroom("predictions", "list", "--json", *arguments))
    return found


def test_list(logged: Settings) -> None:
    found = listed()
    assert [row["request_id"] for row in found] == [f"request-{number}" for number in (*range(10), 20, 21)]
    assert found[0]["at"] == DAY.isoformat()
    assert "embedding" not in found[0]
    assert [row["request_id"] for row in listed("--limit", "3")] == ["request-9", "request-20", "request-21"]
    assert len(listed("--model", "digits")) == 2
    assert len(listed("--package", "bbb")) == 2
    assert len(listed("--since", "2026-03-01T12:00:04+00:00", "--until", "2026-03-01T12:00:07")) == 3
    table = darkroom("predictions", "list", "--model", "digits")
    assert "digits:7" in table
    assert "bbbbbbbb" in table
    assert "grün" in table


def test_list_of_nothing(home_settings: Settings) -> None:
    assert listed() == []


def test_show(logged: Settings) -> None:
    (found,) = json.loads(darkroom("predictions", "show", "request-3", "--json"))
    assert np.array_equal(np.array(found["embedding"], np.float32), record(3).embedding)
    assert found["package_digest"] == "a" * 64
    missing = refused("predictions", "show", "request-99")
    assert isinstance(missing, NotFound)
    assert "10% of all answers" in str(missing)
    assert "darkroom predictions collect" in str(missing)


def test_export(logged: Settings, tmp_path: Path) -> None:
    out = tmp_path / "out.parquet"
    assert darkroom("predictions", "export", str(out), "--model", "colours") == f"10 predictions in {out}\n"
    table = pq.read_table(out)
    assert table.schema.names == READ.names
    assert np.array_equal(np.array(table["probabilities"][4].as_py(), np.float32), record(4).probabilities)
    lines = [json.loads(line) for line in darkroom("predictions", "export").splitlines()]
    assert [line["model"] for line in lines] == [*["colours"] * 10, *["digits"] * 2]
    assert list(tmp_path.glob(".*partial")) == []


def test_a_time_that_is_none(home_settings: Settings) -> None:
    error = refused("predictions", "list", "--until", "yesterday")
    assert isinstance(error, UserError)
    assert "--until 'yesterday'" in str(error)


def test_gc_frees_what_is_older_than_is_kept(home_settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    now = datetime.now(UTC)
    spooled(home_settings.prediction_spool, [record(days, at=now - timedelta(days=days)) for days in (0, 4, 6)])
    darkroom("predictions", "collect")
    storage = LocalStorage(Path(home_settings.store_uri))
    storage.write_new(image_key("ab" * 32), b"image")
    assert json.loads(darkroom("gc", "--json"))["freed"] == {}
    monkeypatch.setenv("DARKROOM_KEEP_PREDICTIONS_DAYS", "5")
    for arguments in (["--dry-run"], []):
        freed = json.loads(darkroom("gc", "--json", *arguments))["freed"]
        assert freed["predictions"]["num_objects"] == 1
    assert [row["request_id"] for row in listed()] == ["request-4", "request-0"]
    assert storage.exists(image_key("ab" * 32))
