"""Where traces go, as people say it by variables."""

from __future__ import annotations

import pytest

from pipelines.core.errors import UserError
from pipelines.core.traces import ENDPOINT, SAMPLE, Tracing, tracing


def chosen(endpoint: str, sample: str = "") -> Tracing:
    found = tracing(endpoint, sample)
    assert found is not None
    return found


def test_nothing_is_traced_unless_somebody_asks() -> None:
    assert tracing("", "") is None
    assert tracing("", "0.5") is None


@pytest.mark.parametrize(
    ("endpoint", "url"),
    [
        ("http://127.0.0.1:4318", "http://127.0.0.1:4318/v1/traces"),
        ("http://collector", "http://collector:4318/v1/traces"),
        ("http://[::1]:4318/", "http://[::1]:4318/v1/traces"),
        ("http://collector:80/otlp/", "http://collector:80/otlp/v1/traces"),
    ],
)
def test_an_endpoint_is_the_collectors_base(endpoint: str, url: str) -> None:
    found = chosen(endpoint)
    assert found.url == url
    assert found.sample == 0.01


def test_another_process_is_told_the_same() -> None:
    found = chosen("http://[::1]:4318/otlp", "0.25")
    assert tracing(found.environment[ENDPOINT], found.environment[SAMPLE]) == found


@pytest.mark.parametrize(
    "endpoint",
    ["127.0.0.1:4318", "https://collector", "http://", "http://a:b@collector", "http://collector:x", "http://c?key=d"],
)
def test_what_is_no_endpoint_is_refused_and_not_shown(endpoint: str) -> None:
    with pytest.raises(UserError, match=ENDPOINT) as refused:
        tracing(endpoint, "")
    assert "a:b" not in str(refused.value)


@pytest.mark.parametrize("sample", ["-0.1", "1.1", "a lot", "nan"])
def test_a_share_is_from_none_to_all(sample: str) -> None:
    with pytest.raises(UserError, match=SAMPLE):
        tracing("http://collector", sample)
