"""Deployments in a real PostgreSQL."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest
from serving_platform import ACTOR, in_own_schema

from pipelines.adapters import database
from pipelines.core.deployments import Build, ServingSpec
from pipelines.core.errors import NotFound, PlatformError
from pipelines.settings import REPOSITORY, Settings

BUILD = Build(model="digits", version=1, package_digest="a" * 64, bento_digest="b" * 64, bento_key="bentos/1.tar")
SPEC = ServingSpec()
MIGRATIONS = REPOSITORY / "pipelines" / "adapters" / "database" / "migrations"


def build(version: int, model: str = "digits") -> Build:
    digest = str(version) * 64
    return replace(BUILD, model=model, version=version, package_digest=digest, bento_digest=digest)


@pytest.fixture
def url(postgres_settings: Settings) -> str:
    found = in_own_schema(postgres_settings)
    database.migrate(found)
    return found


def bring_up(url: str, version: int, **how: object) -> int:
    deployment = database.request_deployment(url, build(version), SPEC, actor=ACTOR, **how)  # type: ignore[arg-type]
    assert database.mark_live(url, deployment, actor=ACTOR)
    return deployment.id


def test_migrating_again_does_nothing(url: str) -> None:
    assert database.migrate(url) == []


def test_many_migrate_at_once(postgres_settings: Settings) -> None:
    url = in_own_schema(postgres_settings)
    applied: list[str] = []
    threads = [threading.Thread(target=lambda: applied.extend(database.migrate(url))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert applied == sorted(path.name for path in MIGRATIONS.glob("*.sql"))


def test_a_request_is_desired_until_it_is_live(url: str) -> None:
    asked = database.request_deployment(url, BUILD, SPEC, actor=ACTOR)
    (state,) = database.desired_state(url)
    assert (state.desired, state.live) == (asked, None)
    database.mark_starting(url, asked.id)
    assert database.mark_live(url, asked, actor=ACTOR)
    (state,) = database.desired_state(url)
    assert state.desired is None
    assert state.live is not None
    assert (state.live.id, state.live.state, state.live.build, state.live.spec) == (asked.id, "live", BUILD, SPEC)


def test_asking_for_what_is_on_its_way_or_live_returns_it(url: str) -> None:
    asked = database.request_deployment(url, BUILD, SPEC, actor=ACTOR)
    assert database.request_deployment(url, BUILD, SPEC, actor=ACTOR) == asked
    database.mark_live(url, asked, actor=ACTOR)
    assert database.request_deployment(url, BUILD, SPEC, actor=ACTOR).id == asked.id
    assert database.request_deployment(url, BUILD, replace(SPEC, workers=2), actor=ACTOR).id != asked.id


def test_a_newer_request_supersedes_one_on_its_way(url: str) -> None:
    first = database.request_deployment(url, build(1), SPEC, actor=ACTOR)
    second = database.request_deployment(url, build(2), SPEC, actor=ACTOR)
    assert database.wait_for(url, first.id, 1).state == "failed"
    assert "superseded" in database.get(url, first.id).reason
    assert not database.mark_live(url, first, actor=ACTOR)
    assert database.mark_live(url, second, actor=ACTOR)


def test_recording_a_live_deployment_again_changes_nothing(url: str) -> None:
    """As after a commit whose answer was lost."""
    first = database.request_deployment(url, build(1), SPEC, actor=ACTOR)
    assert [database.mark_live(url, first, actor=ACTOR), database.mark_live(url, first, actor=ACTOR)] == [True, True]
    assert [one.event for one in database.history(url)] == ["requested", "deploy_live"]
    bring_up(url, 2)
    assert not database.mark_live(url, first, actor=ACTOR)


def test_many_ask_at_once_for_the_same(url: str) -> None:
    found: list[int] = []
    threads = [
        threading.Thread(target=lambda: found.append(database.request_deployment(url, BUILD, SPEC, actor=ACTOR).id))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1


def test_a_failure_leaves_what_was_live(url: str) -> None:
    live = bring_up(url, 1)
    failed = database.request_deployment(url, build(2), SPEC, actor=ACTOR)
    database.mark_failed(url, failed, "its golden set is wrong", actor=ACTOR)
    found = database.wait_for(url, failed.id, 1)
    assert (found.state, found.reason) == ("failed", "its golden set is wrong")
    current = database.current(url, "digits")
    assert current is not None
    assert current.id == live


def test_rolling_back_twice_goes_back_twice(url: str) -> None:
    ids = [bring_up(url, version) for version in (1, 2, 3)]
    failed = database.request_deployment(url, build(4), SPEC, actor=ACTOR)
    database.mark_failed(url, failed, "no", actor=ACTOR)
    for expected in (ids[1], ids[0]):
        before = database.previous(url, "digits")
        assert before is not None
        assert before.id == expected
        bring_up(url, before.build.version, kind="rollback", origin=before.origin)
    assert database.previous(url, "digits") is None


def test_a_rollback_never_returns_to_what_was_rolled_back_from(url: str) -> None:
    def roll_back() -> int:
        before = database.previous(url, "digits")
        assert before is not None
        bring_up(url, before.build.version, kind="rollback", origin=before.origin)
        return before.build.version

    bring_up(url, 1)
    bring_up(url, 2)
    assert roll_back() == 1
    bring_up(url, 3)
    assert roll_back() == 1  # not version 2, though it is newer
    assert database.previous(url, "digits") is None
    bring_up(url, 4)
    bring_up(url, 5)
    assert [roll_back(), roll_back()] == [4, 1]  # twice goes back twice
    assert database.previous(url, "digits") is None


def test_what_was_rolled_back_from_is_known_until_it_serves_again(url: str) -> None:
    def withdrawn() -> dict[int, int]:
        return {one.version: one.returned_to for one in database.withdrawn(url, "digits").values()}

    bring_up(url, 1)
    bring_up(url, 2)
    assert withdrawn() == {}
    bring_up(url, 1, kind="rollback", origin=1)
    assert withdrawn() == {2: 1}
    bring_up(url, 3)
    assert withdrawn() == {2: 1}  # another version says nothing of it
    bring_up(url, 2, kind="promote")
    assert withdrawn() == {}  # a person has changed their mind
    bring_up(url, 3, kind="promote")
    bring_up(url, 2, kind="rollback")
    assert withdrawn() == {3: 2}


def test_rolling_back_skips_other_builds_of_what_serves(url: str) -> None:
    first = bring_up(url, 1)
    for number in range(2):
        again = replace(build(2), bento_digest=f"{number:064d}")
        assert database.mark_live(url, database.request_deployment(url, again, SPEC, actor=ACTOR), actor=ACTOR)
    before = database.previous(url, "digits")
    assert before is not None
    assert before.id == first


def test_models_do_not_disturb_each_other(url: str) -> None:
    first = database.request_deployment(url, build(1), SPEC, actor=ACTOR)
    second = database.request_deployment(url, build(1, "clothing"), SPEC, actor=ACTOR)
    assert [one.desired for one in database.desired_state(url)] == [second, first]


def test_waiting_has_an_end(url: str) -> None:
    asked = database.request_deployment(url, BUILD, SPEC, actor=ACTOR)
    with pytest.raises(PlatformError, match="still requested"):
        database.wait_for(url, asked.id, 0.2)
    with pytest.raises(NotFound):
        database.get(url, 10**9)


def test_a_database_that_is_down_is_a_platform_error(postgres_settings: Settings) -> None:
    with pytest.raises(PlatformError, match="does not answer"):
        database.desired_state("postgresql://darkroom:x@127.0.0.1:1/darkroom")
