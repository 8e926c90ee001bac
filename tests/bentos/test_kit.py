"""The leaf that every service shares."""

from __future__ import annotations

from pathlib import Path

import pytest
from starlette.exceptions import HTTPException

from bentos.kit import settings
from bentos.kit.budget import Budget
from bentos.kit.cache import Cache
from bentos.kit.errors import Overloaded, RequestRefused, problem_of
from pipelines.core.cores import num_cores
from pipelines.core.errors import ImageError, IntegrityError, NotFound, UserError


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (ImageError("truncated", "cut"), 422, "truncated"),
        (ImageError("a reason of tomorrow", "new"), 422, "a reason of tomorrow"),
        (ImageError("unsupported_format", "TIFF"), 415, "unsupported_format"),
        (RequestRefused(400, "bad_top_k", "no"), 400, "bad_top_k"),
        (Overloaded(256), 503, "overloaded"),
        (NotFound("no such model"), 404, "not_found"),
        (UserError("wrong"), 400, "bad_request"),
        (HTTPException(405), 405, "method_not_allowed"),
    ],
)
def test_errors_become_problems(error: Exception, status: int, reason: str) -> None:
    problem = problem_of(error)
    assert (problem.status, problem.reason) == (status, reason)


@pytest.mark.parametrize("error", [ValueError("secret path"), IntegrityError("secret path"), KeyError("secret")])
def test_unexpected_errors_never_show_their_text(error: Exception) -> None:
    problem = problem_of(error)
    assert problem.status == 500
    assert "secret" not in problem.detail


def test_settings_have_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    found = settings.load(Path("/model"))
    assert (found.model_folder, found.threads, found.concurrency, found.top_k) == (
        Path("/model"),
        1,
        num_cores(),
        5,
    )
    monkeypatch.setenv("DARKROOM_THREADS", str(4 * num_cores()))
    assert settings.load(Path("/model")).concurrency == 1


@pytest.mark.parametrize(
    ("name", "value"), [("DARKROOM_TOP_K", "0"), ("DARKROOM_THREADS", "two"), ("DARKROOM_PROVIDER", "tpu")]
)
def test_a_wrong_setting_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=name):
        settings.load(Path("/model"))


# --- budget --------------------------------------------------------------------------------------------------------


def test_many_large_bodies_never_shut_out_a_small_one() -> None:
    """Room is taken from the largest that still arrives; who is the largest itself is refused."""
    budget, gave_up = Budget(100), []
    large, larger = budget.growing(lambda: gave_up.append("large")), budget.growing(lambda: gave_up.append("larger"))
    large.grow(40)
    larger.grow(60)
    with pytest.raises(Overloaded, match="100 bytes are waiting"):
        larger.grow(1)
    assert gave_up == []
    with budget.growing(lambda: gave_up.append("small")) as small:
        small.grow(1)
        assert (gave_up, budget.used) == (["larger"], 41)
        with pytest.raises(Overloaded):
            larger.grow(1)
        with pytest.raises(Overloaded):
            small.grow(65)  # it would be the largest now
        assert (gave_up, budget.used) == (["larger"], 41)
    large.close()
    assert budget.used == 0
    assert budget.arriving == set()


def test_what_is_here_already_is_never_given_up() -> None:
    budget, gave_up = Budget(100), []
    with budget.growing(lambda: gave_up.append("large")) as large:
        large.grow(90)
        with budget.holding(80):
            assert (gave_up, budget.used) == (["large"], 80)
            with pytest.raises(Overloaded):
                budget.holding(21)
            with budget.growing(lambda: gave_up.append("small")) as small, pytest.raises(Overloaded):
                small.grow(21)
    assert budget.used == 0


# --- cache ---------------------------------------------------------------------------------------------------------


def test_the_cache_gives_up_what_was_used_least_recently() -> None:
    cache: Cache[str] = Cache(30)
    for key in "abc":
        cache.put(key, key.upper(), 10)
    assert cache.get("a") == "A"
    cache.put("d", "D", 10)
    assert [cache.get(key) for key in "abcd"] == ["A", None, "C", "D"]
    cache.put("huge", "H", 31)
    assert cache.get("huge") is None
    cache.put("e", "E", 30)
    assert [cache.get(key) for key in "acde"] == [None, None, None, "E"]
    cache.put("e", "again", 5)
    assert cache.get("e") == "E"
    assert not Cache(0).enabled
