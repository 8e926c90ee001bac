"""The leaf that every service shares."""

from __future__ import annotations

from pathlib import Path

import pytest
from starlette.exceptions import HTTPException

from bentos.kit import settings
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
