"""The thread that anchors the audit log, over a real database and a real store; it is only made to look more often."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from audit_log import anchored_seq, anchoring, grow, grow_and_anchor, superuser
from serving_platform import VARIABLE, in_own_schema, wait_until

from pipelines import settings as settings_module
from pipelines.adapters import database
from pipelines.adapters.signing import Trust, public_keys
from pipelines.cli.verification import verify
from pipelines.core import anchors
from pipelines.core.storage import Storage, open_storage
from pipelines.local import secrets
from pipelines.local.anchoring import Anchoring
from pipelines.settings import Settings


@pytest.fixture
def settings(postgres_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """An empty log, a home and a store of a test's own."""
    monkeypatch.setenv(VARIABLE, in_own_schema(postgres_settings))
    monkeypatch.setenv("DARKROOM_HOME", str(tmp_path / "home"))
    found = settings_module.load()
    secrets.ensure(found)
    database.migrate(found.database_url("darkroom"))
    return found


def url(settings: Settings) -> str:
    return settings.database_url("darkroom")


def store(settings: Settings) -> Storage:
    return open_storage(settings.store_uri, endpoint_url=settings.s3_endpoint_url)


def seqs(settings: Settings) -> list[int]:
    return [anchors.parse(one.data, one.key).seq for one in anchors.stored(store(settings))]


def test_the_log_is_anchored_when_it_has_grown(settings: Settings) -> None:
    with anchoring(settings):
        grow(url(settings), 3)
        wait_until(lambda: anchored_seq(settings) == 3)
        grow(url(settings), 2)
        wait_until(lambda: anchored_seq(settings) == 5)
    keys = public_keys((settings.secrets / "audit-anchors.pem").read_bytes(), "")
    last = anchors.newest(store(settings))
    assert last is not None
    anchor = anchors.parse(last.data, last.key)
    assert Trust(keys)(anchor) == ""
    assert anchor.hash == list(database.history(url(settings)))[-1].hash
    assert verify(settings).findings == []


def test_nothing_is_written_where_nothing_happened(settings: Settings) -> None:
    with anchoring(settings):
        pass
    assert seqs(settings) == []
    grow_and_anchor(settings, 2)
    with anchoring(settings), anchoring(settings):
        pass
    assert seqs(settings) == [2]


def test_the_end_is_anchored_too(settings: Settings) -> None:
    hourly = Anchoring(settings, period_s=3600)
    hourly.start()
    grow(url(settings), 4)
    hourly.end()
    assert seqs(settings)[-1] == 4
    assert hourly.trouble == ""


def test_a_database_that_was_away_is_waited_for(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = url(settings)
    grow(real, 1)
    monkeypatch.setenv(VARIABLE, "postgresql://darkroom:x@127.0.0.1:1/darkroom")
    with anchoring(settings) as running:
        wait_until(lambda: "does not answer" in running.trouble)
        monkeypatch.setenv(VARIABLE, real)
        wait_until(lambda: anchored_seq(settings) == 1)
        wait_until(lambda: not running.trouble)
    said = capsys.readouterr().err
    assert said.count("the audit log is not anchored: PostgreSQL does not answer") == 1
    assert "the audit log is anchored again" in said


def test_a_store_that_was_away_is_waited_for(settings: Settings) -> None:
    blocked = Path(settings.store_uri)
    blocked.write_text("")
    grow(url(settings), 1)
    with anchoring(settings) as running:
        wait_until(lambda: str(blocked) in running.trouble)
        blocked.unlink()
        wait_until(lambda: anchored_seq(settings) == 1)
    assert seqs(settings) == [1]


def test_anchors_in_s3(settings: Settings, s3_endpoint: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DARKROOM_STORE", f"s3://{s3_endpoint.bucket()}/house")
    monkeypatch.setenv("DARKROOM_S3_ENDPOINT_URL", s3_endpoint.url)
    remote = settings_module.load()
    grow_and_anchor(remote, 2, 3)
    found = verify(remote)
    assert (found.findings, found.audit.num_anchors, found.audit.num_rows) == ([], 2, 5)


@pytest.mark.parametrize(
    ("statement", "told"),
    [
        ("DELETE FROM history WHERE seq > 2", "row 3 is not what was anchored"),
        ("UPDATE history SET hash = repeat('7', 64) WHERE seq = 3", "row 3 is not what was anchored"),
        ("UPDATE history SET event = 'accepted' WHERE seq = 4", "row 4 does not match its hash"),
        ("DELETE FROM history WHERE seq = 4", "row 4 is missing"),
    ],
    ids=["cut", "rewritten", "edited", "deleted"],
)
def test_a_log_that_was_tampered_with_is_not_signed(
    settings: Settings, postgres_settings: Settings, statement: str, told: str
) -> None:
    grow_and_anchor(settings, 3)
    grow(url(settings), 2)
    with superuser(postgres_settings, url(settings)) as connection:
        connection.execute(statement.encode())
    with anchoring(settings) as running:
        wait_until(lambda: told in running.trouble)
        assert "darkroom audit verify" in running.trouble
    assert seqs(settings) == [3]


def test_an_anchor_that_is_gone_from_the_store_is_told(settings: Settings) -> None:
    grow_and_anchor(settings, 2, 2)
    store(settings).delete(f"{anchors.PREFIX}{4:020d}.json")
    grow(url(settings), 2)
    with anchoring(settings) as running:
        wait_until(lambda: "anchors were deleted or replaced" in running.trouble)
    assert seqs(settings) == [2]


def test_another_installations_key_does_not_go_on(settings: Settings) -> None:
    """The secrets were lost: what the old key signed is trusted again once its public half is in the file."""
    pem = settings.secrets / "audit-anchors.pem"
    grow_and_anchor(settings, 2)
    old = pem.read_text()
    pem.unlink()
    (settings.secrets / "audit-anchors").unlink()
    secrets.ensure(settings)
    grow(url(settings), 2)
    with anchoring(settings) as running:
        wait_until(lambda: "signed with another key" in running.trouble)
        pem.write_text(pem.read_text() + old)
        wait_until(lambda: anchored_seq(settings) == 4)
    assert verify(settings).findings == []


def _after_the_store(settings: Settings, before: bytes) -> None:
    """The anchor is in the store; the home knows the one before only."""
    _kept(settings).write_bytes(before)


def _before_the_first_was_kept(settings: Settings, before: bytes) -> None:
    _kept(settings).unlink()


def _kept(settings: Settings) -> Path:
    return settings.home / "audit" / "last-anchor.json"


@pytest.mark.parametrize("killed", [_after_the_store, _before_the_first_was_kept])
def test_a_kill_between_store_and_home_loses_nothing(
    settings: Settings, killed: Callable[[Settings, bytes], None]
) -> None:
    grow_and_anchor(settings, 2)
    before = _kept(settings).read_bytes()
    grow_and_anchor(settings, 2)
    killed(settings, before)
    grow_and_anchor(settings, 2)
    assert seqs(settings) == [2, 4, 6]
    assert verify(settings).findings == []


_BUSY = """
from audit_log import anchoring, grow
from pipelines import settings as settings_module
settings = settings_module.load()
with anchoring(settings):
    while True:
        print(grow(settings.database_url("darkroom"), 1), flush=True)
"""


def test_killed_again_and_again_it_goes_on(settings: Settings) -> None:
    for _ in range(3):
        busy = subprocess.Popen(
            [sys.executable, "-c", f"import sys; sys.path[:0] = {sys.path!r}\n{_BUSY}"],
            stdout=subprocess.PIPE,
            text=True,
            env=dict(os.environ),
        )
        before = anchored_seq(settings)
        wait_until(lambda before=before: anchored_seq(settings) > before)  # type: ignore[misc]
        busy.send_signal(signal.SIGKILL)
        busy.communicate()
        assert verify(settings).findings == []
    with anchoring(settings):
        last = grow(url(settings), 1)
        wait_until(lambda: anchored_seq(settings) == last)
    found = verify(settings)
    assert found.findings == []
    assert found.audit.num_anchors >= 4
