"""`darkroom audit`: every attack on the log, by a superuser whom no trigger stops, and on its anchors, is named."""

from __future__ import annotations

import json
import secrets as randomness
from base64 import b64encode
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
from audit_log import grow, grow_and_anchor, superuser
from serving_platform import ACTOR, VARIABLE, in_own_schema
from typer.testing import CliRunner

from pipelines import settings as settings_module
from pipelines.adapters import database
from pipelines.adapters.database.events import detail_text, from_row, hash_of
from pipelines.adapters.signing import Signer, public_pem
from pipelines.cli.app import app
from pipelines.core import anchors
from pipelines.core.anchors import Anchor
from pipelines.core.errors import IntegrityError, UserError
from pipelines.core.storage import LocalStorage
from pipelines.local import secrets
from pipelines.local.anchoring import kept_anchor
from pipelines.settings import Settings

Attack = Callable[[psycopg.Connection], object]


@pytest.fixture
def settings(postgres_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """A log of 12 rows with anchors of rows 4, 6 and 10; two rows are newer than the last."""
    url = in_own_schema(postgres_settings)
    monkeypatch.setenv(VARIABLE, url)
    monkeypatch.setenv("DARKROOM_HOME", str(tmp_path / "home"))
    found = settings_module.load()
    secrets.ensure(found)
    database.migrate(url)
    grow_and_anchor(found, 4, 2, 4)
    grow(url, 2)
    return found


def verify(*options: str, code: int = 3) -> dict[str, Any]:
    """What the command says to programs; `code` is the exit code."""
    done = CliRunner().invoke(app, ["audit", "verify", "--json", *options])
    assert (done.exception.exit_code if isinstance(done.exception, IntegrityError) else done.exit_code) == code
    table: dict[str, Any] = json.loads(done.stdout)
    assert table["num_findings"] == len(table["findings"])
    return table


def found(*options: str) -> list[tuple[str, int]]:
    return [(one["kind"], one["seq"]) for one in verify(*options)["findings"]]


def test_a_log_that_nobody_touched(settings: Settings) -> None:
    table = verify(code=0)
    assert table.pop("anchored_at")[:2] == "20"
    assert table == {
        "rows": 12,
        "anchors": 3,
        "anchored_seq": 10,
        "unanchored_rows": 2,
        "public_key_file": str(settings.secrets / "audit-anchors.pem"),
        "num_findings": 0,
        "findings": [],
    }
    said = CliRunner().invoke(app, ["audit", "verify"], catch_exceptions=False).stdout
    assert said.startswith("12 rows, 3 anchors: the last that holds is of row 10, ")


@pytest.mark.parametrize(
    "column",
    [
        'detail = \'{"verdict": "better"}\'',
        "detail = replace(detail::text, ' ', '')::json",  # the same to us, and not as it was written
        "actor = 'bob@lab'",
        "event = 'accepted'",
        "model = 'clothing'",
        "at = replace(at, '20', '19')",
    ],
    ids=lambda column: column.partition(" ")[0],
)
def test_an_edited_row(settings: Settings, postgres_settings: Settings, column: str) -> None:
    with superuser(postgres_settings, settings.database_url("darkroom")) as connection:
        connection.execute(f"UPDATE history SET {column} WHERE seq = 3".encode())
    assert found() == [("edited_row", 3)]


def rewritten(connection: psycopg.Connection, first: int) -> None:
    """Rows from `first` on say something else, and every hash is made to fit, as by one who knows how."""
    connection.row_factory = psycopg.rows.dict_row  # type: ignore[assignment]
    rows: Any = connection.execute("SELECT * FROM history WHERE seq >= %s ORDER BY seq", [first - 1]).fetchall()
    previous = rows[0]["hash"] if first > 1 else anchors.GENESIS
    for row in rows[first > 1 :]:
        event = replace(from_row(row), detail={"verdict": "better"})
        hash_ = hash_of(previous, event)
        connection.execute(
            "UPDATE history SET detail = %s, previous_hash = %s, hash = %s WHERE seq = %s",
            [detail_text(event.detail), previous, hash_, event.seq],
        )
        previous = hash_


def inserted(connection: psycopg.Connection) -> None:
    """A row between 2 and 3 that follows 2 as it should; the later ones move up by one."""
    connection.execute("UPDATE history SET seq = -seq WHERE seq >= 3")
    connection.execute("UPDATE history SET seq = 1 - seq WHERE seq < 0")
    connection.row_factory = psycopg.rows.dict_row  # type: ignore[assignment]
    before: Any = connection.execute("SELECT * FROM history WHERE seq = 2").fetchone()
    event = replace(from_row(before), seq=3)
    values = [3, event.at, ACTOR, event.model, event.event, detail_text(event.detail), event.hash]
    connection.execute(
        "INSERT INTO history (seq, at, actor, model, event, detail, previous_hash, hash)"
        " VALUES (%s, %s, %s, %s, %s, %s, %s, %s)",
        [*values, hash_of(event.hash, event)],
    )


def statements(*all_of: str) -> Attack:
    return lambda connection: [connection.execute(one.encode()) for one in all_of]


COPY_OF_ROW_9 = (
    "INSERT INTO history SELECT {}, at, model, deployment_id, event, detail, previous_hash, repeat('7', 64), actor"
    " FROM history WHERE seq = 9"
)
PLACE, CONTENT = "misplaced_row", "edited_row"
# What is done, the first row that is named, and what is found.
ATTACKS: dict[str, tuple[Attack, int, set[str]]] = {
    "deleted": (statements("DELETE FROM history WHERE seq = 3"), 3, {"missing_rows"}),
    "first-deleted": (statements("DELETE FROM history WHERE seq <= 2"), 1, {"missing_rows"}),
    "swapped": (
        statements(
            "UPDATE history SET seq = -seq WHERE seq IN (2, 3)", "UPDATE history SET seq = 5 + seq WHERE seq < 0"
        ),
        2,
        {PLACE, CONTENT},
    ),
    "put-in": (inserted, 4, {PLACE, CONTENT, "rewritten_rows"}),
    "twice": (
        statements("ALTER TABLE history DROP CONSTRAINT history_pkey", COPY_OF_ROW_9.format(3)),
        3,
        {PLACE, CONTENT},
    ),
    "before-the-first": (statements(COPY_OF_ROW_9.format(0)), 0, {PLACE, CONTENT}),
    "actor-blanked": (
        statements(
            "ALTER TABLE history DROP CONSTRAINT history_names_its_actor",
            "UPDATE history SET actor = '' WHERE seq = 3",
        ),
        3,
        {CONTENT},
    ),
    "hash-changed": (statements("UPDATE history SET hash = repeat('7', 64) WHERE seq = 3"), 3, {PLACE, CONTENT}),
    "rewritten": (lambda connection: rewritten(connection, 1), 1, {"rewritten_rows"}),
    "rewritten-late": (lambda connection: rewritten(connection, 9), 7, {"rewritten_rows"}),
    "cut": (statements("DELETE FROM history WHERE seq > 8"), 9, {"cut_tail"}),
    "truncated": (statements("TRUNCATE history"), 1, {"cut_tail"}),
}


@pytest.mark.parametrize(("attack", "first", "kinds"), ATTACKS.values(), ids=ATTACKS)
def test_rows_that_are_not_as_they_were_written(
    settings: Settings, postgres_settings: Settings, attack: Attack, first: int, kinds: set[str]
) -> None:
    with superuser(postgres_settings, settings.database_url("darkroom")) as connection:
        attack(connection)
    all_found = found()
    assert all_found[0][1] == first
    assert {kind for kind, _ in all_found} == kinds


def test_a_log_that_was_truncated_and_begun_anew(settings: Settings, postgres_settings: Settings) -> None:
    with superuser(postgres_settings, settings.database_url("darkroom")) as connection:
        connection.execute("TRUNCATE history")
    grow(settings.database_url("darkroom"), 20)
    assert found() == [("rewritten_rows", 1)] * 3


def test_triggers_that_are_off(settings: Settings, postgres_settings: Settings) -> None:
    with superuser(postgres_settings, settings.database_url("darkroom"), guarded=True) as connection:
        connection.execute("ALTER TABLE history DISABLE TRIGGER USER")
        connection.execute("TRUNCATE history")
    assert found() == [("cut_tail", 1), ("open_table", 0), ("open_table", 0)]


def test_a_table_that_was_dropped(settings: Settings, postgres_settings: Settings) -> None:
    with superuser(postgres_settings, settings.database_url("darkroom")) as connection:
        connection.execute("DROP TABLE history")
    refused = CliRunner().invoke(app, ["audit", "verify"])
    assert isinstance(refused.exception, IntegrityError)
    assert "no table `history`" in str(refused.exception)


def test_what_no_anchor_has_seen_yet_can_be_cut_off(settings: Settings, postgres_settings: Settings) -> None:
    """The limit that the documentation names."""
    with superuser(postgres_settings, settings.database_url("darkroom")) as connection:
        connection.execute("DELETE FROM history WHERE seq > 10")
    assert verify(code=0)["rows"] == 10


# --- anchors -------------------------------------------------------------------------------------------------------


def place(settings: Settings, seq: int) -> Path:
    return settings.home / "store" / Anchor(seq=seq, hash="", at="", previous="").key


def read(settings: Settings, seq: int) -> Anchor:
    return anchors.parse(place(settings, seq).read_bytes(), "")


@pytest.mark.parametrize(("deleted", "told"), [(4, 6), (6, 10), (10, 10)], ids=["first", "middle", "last"])
def test_an_anchor_that_was_deleted(settings: Settings, deleted: int, told: int) -> None:
    place(settings, deleted).unlink()
    assert found() == [("missing_anchor", told)]


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data.replace(b'"hash": "', b'"hash": "0'),
        lambda data: data.replace(b" ", b""),
        lambda data: data.replace(b'"seq": 6', b'"seq": 7'),
        lambda data: b"[]",
        lambda data: b"",
    ],
    ids=["content", "form", "row", "something-else", "empty"],
)
def test_an_anchor_that_was_changed(settings: Settings, change: Callable[[bytes], bytes]) -> None:
    path = place(settings, 6)
    path.write_bytes(change(path.read_bytes()))
    assert {kind for kind, _ in found()} == {"forged_anchor", "missing_anchor"}


def test_an_anchor_under_another_name(settings: Settings) -> None:
    place(settings, 8).write_bytes(place(settings, 6).read_bytes())
    assert found() == [("forged_anchor", 6)]


def forge(settings: Settings, seqs: tuple[int, ...]) -> str:
    """The attacker's own anchors over the rows as they are now; returns the private key."""
    key = b64encode(randomness.token_bytes(32)).decode()
    rows = {one.seq: one for one in database.history(settings.database_url("darkroom"))}
    previous = anchors.GENESIS
    for seq in seqs:
        anchor = Signer(key).sign(Anchor(seq=seq, hash=rows[seq].hash, at=rows[seq].at, previous=previous))
        place(settings, seq).write_bytes(anchor.to_bytes())
        previous = anchor.digest
    return key


def test_a_rewritten_log_with_anchors_to_it(
    settings: Settings, postgres_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who writes database and store still has not the key; another machine sees that only with its public half."""
    pinned, kept = tmp_path / "public.pem", tmp_path / "anchor.json"
    pinned.write_bytes((settings.secrets / "audit-anchors.pem").read_bytes())
    kept.write_bytes(place(settings, 10).read_bytes())
    with superuser(postgres_settings, settings.database_url("darkroom")) as connection:
        rewritten(connection, 2)
    key = forge(settings, (4, 6, 10))
    told = [("forged_anchor", 4), ("forged_anchor", 6), ("forged_anchor", 10)]
    assert found() == [*told, ("missing_anchor", 10)]  # this machine knows what it wrote last
    monkeypatch.setenv("DARKROOM_STORE", settings.store_uri)
    monkeypatch.setenv("DARKROOM_HOME", str(tmp_path / "elsewhere"))
    assert verify(code=0)["public_key_file"] is None
    assert found("--public-key", str(pinned)) == told
    assert found("--anchor", str(kept)) == [("missing_anchor", 10)]
    pinned.write_text(pinned.read_text() + public_pem(key))  # as for a key that was replaced
    verify("--public-key", str(pinned), code=0)


def test_all_anchors_deleted_and_the_log_truncated(settings: Settings, postgres_settings: Settings) -> None:
    with superuser(postgres_settings, settings.database_url("darkroom")) as connection:
        connection.execute("TRUNCATE history")
    for entry in LocalStorage(settings.home / "store").list(anchors.PREFIX):
        Path(settings.home / "store" / entry.key).unlink()
    assert found() == [("missing_anchor", 10)]
    assert kept_anchor(settings) is not None


@pytest.mark.parametrize("option", ["--public-key", "--anchor"])
def test_a_file_that_does_not_serve_is_named(settings: Settings, tmp_path: Path, option: str) -> None:
    (tmp_path / "wrong").write_text("-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n")
    for path in (tmp_path / "wrong", tmp_path / "missing"):
        refused = CliRunner().invoke(app, ["audit", "verify", option, str(path)])
        assert isinstance(refused.exception, UserError)
        assert str(path) in str(refused.exception)


# --- list ----------------------------------------------------------------------------------------------------------


def test_the_list_for_people_and_for_programs(settings: Settings) -> None:
    def listed(*options: str) -> str:
        return CliRunner().invoke(app, ["audit", "list", *options], catch_exceptions=False).stdout

    database.record(settings.database_url("darkroom"), "", "key_created", {"scope": "[read]"}, "bob@lab")
    rows = json.loads(listed("--json", "--limit", "0"))
    assert [one["seq"] for one in rows] == list(range(1, 14))
    assert json.loads(listed("--json", "--actor", "nobody")) == []
    assert [one["event"] for one in json.loads(listed("--json", "--since", rows[-1]["at"]))] == ["key_created"]
    said = listed("--actor", "bob", "--since", "2026-01-01")
    assert "key_created" in said
    assert "scope [read]" in said
    assert "rejected" not in said
    refused = CliRunner().invoke(app, ["audit", "list", "--since", "yesterday"])
    assert "YYYY-MM-DD" in str(refused.exception)
