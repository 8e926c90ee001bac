"""The history in a real PostgreSQL: who did what, one row after the other, and none twice."""

from __future__ import annotations

import subprocess
import sys
import threading
from contextlib import closing
from importlib import resources

import psycopg
import pytest
from audit_log import grow, superuser
from serving_platform import ACTOR, in_own_schema

from pipelines.adapters import database
from pipelines.adapters.database.connection import connect
from pipelines.core.audit import Chain, Finding
from pipelines.core.deployments import Build, ServingSpec
from pipelines.core.results import digest_json
from pipelines.settings import Settings

BUILD = Build(model="digits", version=1, package_digest="a" * 64, bento_digest="b" * 64, bento_key="bentos/1.tar")


@pytest.fixture
def url(postgres_settings: Settings) -> str:
    found = in_own_schema(postgres_settings)
    database.migrate(found)
    return found


def findings(url: str) -> list[Finding]:
    chain = Chain()
    with closing(database.links(url)) as links:
        return [finding for link in links for finding in chain.follow(link)]


def test_it_tells_who_asked_for_what_and_what_became_of_it(url: str) -> None:
    live = database.request_deployment(url, BUILD, ServingSpec(), actor="ada@lab")
    assert database.mark_live(url, live, actor="supervisor:lab")
    other = Build(model="digits", version=2, package_digest="c" * 64, bento_digest="d" * 64, bento_key="bentos/2.tar")
    failed = database.request_deployment(url, other, ServingSpec(), actor="airflow:train_classifier/1")
    database.mark_failed(url, failed, "why", actor="supervisor:lab")
    database.record(url, "", "key_revoked", {"key": 7}, "bob@lab")
    rows = [
        (one.event, one.model, one.actor, one.detail.get("requested_by"), one.deployment_id)
        for one in database.history(url)
    ]
    assert rows == [
        ("requested", "digits", "ada@lab", None, live.id),
        ("deploy_live", "digits", "supervisor:lab", "ada@lab", live.id),
        ("requested", "digits", "airflow:train_classifier/1", None, failed.id),
        ("deploy_failed", "digits", "supervisor:lab", "airflow:train_classifier/1", failed.id),
        ("key_revoked", "", "bob@lab", None, None),
    ]
    assert findings(url) == []


def test_who_supersedes_a_request_has_ended_it(url: str) -> None:
    database.request_deployment(url, BUILD, ServingSpec(), actor="ada@lab")
    database.request_deployment(url, BUILD, ServingSpec(workers=2), actor="bob@lab")
    ended = list(database.history(url))[1]
    assert (ended.event, ended.actor, ended.detail["requested_by"]) == ("deploy_failed", "bob@lab", "ada@lab")


def test_what_is_tried_again_leaves_one_row(url: str) -> None:
    for run in ("one", "one", "two", "one"):
        database.record_once(url, "digits", "rejected", {"run": run}, ACTOR, key="run")
    for version in (1, 1, 2, 1):
        database.record_change(url, "digits", "champion", {"version": version}, ACTOR, key="version")
    assert [one.detail.get("run") for one in database.history(url) if one.event == "rejected"] == ["one", "two"]
    assert [one.detail.get("version") for one in database.history(url) if one.event == "champion"] == [1, 2, 1]


@pytest.mark.parametrize(
    "statement",
    ["UPDATE history SET event = 'x'", "DELETE FROM history", "TRUNCATE history"],
    ids=["update", "delete", "truncate"],
)
def test_postgresql_refuses_edits(url: str, postgres_settings: Settings, statement: str) -> None:
    grow(url, 1)
    refused = pytest.raises(psycopg.errors.RaiseException, match="append-only")
    with refused, superuser(postgres_settings, url, guarded=True) as connection:
        connection.execute(statement.encode())


def test_a_row_without_an_actor_is_refused(url: str) -> None:
    with pytest.raises(psycopg.errors.CheckViolation):
        database.record(url, "digits", "rejected", {}, "")


def test_rows_from_before_actors_keep_their_hashes(postgres_settings: Settings) -> None:
    url = in_own_schema(postgres_settings)
    first = resources.files("pipelines.adapters.database") / "migrations" / "0001_deployments.sql"
    row = {"seq": 1, "at": "2026-01-01T00:00:00+00:00", "model": "digits", "deployment_id": None, "event": "rejected"}
    hash_ = digest_json({**row, "detail": {"run": "one"}, "hash": "0" * 64})
    with connect(url) as connection:
        connection.execute(first.read_text("utf-8").encode())
        connection.execute("CREATE TABLE migrations (name text PRIMARY KEY, at timestamptz NOT NULL DEFAULT now())")
        connection.execute("INSERT INTO migrations (name) VALUES ('0001_deployments.sql')")
        connection.execute(
            "INSERT INTO history (seq, at, model, deployment_id, event, detail, previous_hash, hash)"
            " VALUES (%s, %s, %s, %s, %s, %s, %s, %s)",
            [*row.values(), '{"run": "one"}', "0" * 64, hash_],
        )
    assert database.migrate(url)[0] == "0002_audit.sql"
    grow(url, 2)
    assert [one.actor for one in database.history(url)] == ["", ACTOR, ACTOR]
    assert findings(url) == []


def test_many_writers_at_once_make_one_chain(url: str) -> None:
    threads = [threading.Thread(target=grow, args=(url, 10)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [one.seq for one in database.history(url)] == list(range(1, 41))
    assert findings(url) == []


_WRITER = """
import sys
from audit_log import grow
while True:
    grow(sys.argv[1], 1)
    print("row", flush=True)
"""


def test_writers_that_are_killed_leave_a_whole_chain(url: str) -> None:
    for _ in range(2):
        command = [sys.executable, "-c", f"import sys; sys.path[:0] = {sys.path!r}\n{_WRITER}", url]
        writer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert writer.stdout is not None
        for _ in range(3):
            assert writer.stdout.readline() == "row\n"
        writer.kill()
        writer.communicate()
    grow(url, 1)
    assert len(list(database.history(url))) >= 7
    assert findings(url) == []


def test_events_are_found_by_model_actor_and_time(url: str) -> None:
    for model, actor in (("digits", "ada@lab"), ("clothing", "ada@lab"), ("digits", "airflow:train/1")):
        database.record(url, model, "rejected", {}, actor)
    second = list(database.history(url))[1]

    def seqs(*arguments: str | None, **chosen: object) -> list[int]:
        return [one.seq for one in database.history(url, *arguments, **chosen)]  # type: ignore[arg-type]

    assert seqs() == [1, 2, 3]
    assert seqs("digits") == [1, 3]
    assert seqs(actor="ada") == [1, 2]
    assert seqs("digits", actor="airflow:") == [3]
    assert seqs(since=second.at) == [2, 3]
    assert seqs(since="2999-01-01") == []
    assert seqs(limit=2) == [2, 3]
    assert seqs("digits", limit=1) == [3]
