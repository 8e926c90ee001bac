"""What a person sets for the platform, as its serving processes and its gateway get it."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from pipelines import settings as settings_module
from pipelines.adapters.gateway import write_initial
from pipelines.core.deployments import Build, Deployment, ServingSpec
from pipelines.core.errors import UserError
from pipelines.local import similar
from pipelines.local.identity import identity
from pipelines.local.serving.fleet import Fleet
from pipelines.settings import REPOSITORY, Settings

CHOSEN = {
    "DARKROOM_MAX_BATCH": "7",
    "DARKROOM_MAX_WAITING": "11",
    "DARKROOM_MAX_WAIT_MS": "1234",
    "DARKROOM_MAX_IMAGES": "3",
    "DARKROOM_MAX_BODY_BYTES": "1000001",
    "DARKROOM_MAX_BATCH_BYTES": "2000002",
    "DARKROOM_MAX_BYTES_IN_FLIGHT": "300000003",
    "DARKROOM_CACHE_BYTES": "0",
    "DARKROOM_PROVIDER": "cpu",
    "DARKROOM_REDIS_URL_FILE": "/etc/redis-url",
    "DARKROOM_REDIS_ANSWERS_S": "60",
    "DARKROOM_REDIS_MAX_ANSWER_BYTES": "1024",
    "DARKROOM_LOG_PREDICTIONS": "0.5",
    "DARKROOM_PREDICTION_SPOOL_MB": "64",
    "DARKROOM_LOG_IMAGES": "1",
    "DARKROOM_OTLP_ENDPOINT": "http://127.0.0.1:4318",
    "DARKROOM_TRACE_SAMPLE": "0.5",
}
"""Each another value than its default."""


@pytest.fixture
def chosen(home_settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Settings:
    for name, value in CHOSEN.items():
        monkeypatch.setenv(name, value)
    return settings_module.load()


def of_a_classifier(settings: Settings) -> dict[str, str]:
    """What one process of a deployment gets."""
    build = Build(model="colours", version=1, package_digest="", bento_digest="", bento_key="")
    deployment = Deployment(
        **{"id": 1, "build": build, "spec": ServingSpec(), "kind": "deploy", "origin": 1, "state": "live"},
        **{"reason": "", "actor": "", "requested_at": datetime.now(UTC), "live_at": None, "ended_at": None},
    )
    return Fleet(settings, deployment, settings.home)._environment()


def documented() -> list[str]:
    """Variables of the table in bentos/README.md that are for a person to set on a platform."""
    text = (REPOSITORY / "bentos" / "README.md").read_text()
    table = text[text.index("| `DARKROOM_WEIGHTS`") :].partition("\n\n")[0]
    rows = re.findall(r"^\| `(DARKROOM_[A-Z_]+)` \|([^|]*)\|", table, re.MULTILINE)
    return [name for name, default in rows if "the supervisor sets it" not in default and "the recipe" not in default]


def test_every_variable_of_the_table_comes_to_every_process(chosen: Settings) -> None:
    assert sorted(documented()) == sorted(CHOSEN)
    found = of_a_classifier(chosen)
    assert {name: found.get(name) for name in CHOSEN} == CHOSEN


def test_the_search_for_similar_images_gets_its_own(chosen: Settings) -> None:
    found = similar.environment(chosen)
    names = ("MAX_WAITING", "MAX_WAIT_MS", "MAX_BODY_BYTES", "MAX_BYTES_IN_FLIGHT")
    assert {name: found.get(f"DARKROOM_{name}") for name in names} == {
        name: CHOSEN[f"DARKROOM_{name}"] for name in names
    }


def test_what_nobody_sets_is_for_each_service_to_say(home_settings: Settings) -> None:
    """`similar` lets a request wait longer than a classifier does."""
    assert "DARKROOM_MAX_WAIT_MS" not in of_a_classifier(home_settings)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("DARKROOM_MAX_BATCH", "0", "expected a number from 1 to 1024"),
        ("DARKROOM_CACHE_BYTES", "64M", "expected a number from 0 to 1099511627776"),
        ("DARKROOM_PROVIDER", "tpu", "expected one of auto, cpu, cuda"),
    ],
)
def test_a_wrong_one_is_named_before_anything_starts(
    home_settings: Settings, monkeypatch: pytest.MonkeyPatch, name: str, value: str, expected: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=f"{name}='{value}': {expected}"):
        settings_module.load()


@pytest.mark.parametrize("name", [name for name in CHOSEN if name != "DARKROOM_TRACE_SAMPLE"])
def test_a_platform_with_another_value_is_another_one(
    home_settings: Settings, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    before = identity(settings_module.load())
    monkeypatch.setenv(name, CHOSEN[name])
    assert identity(settings_module.load()) != before


def test_the_gateway_refuses_what_its_processes_would(chosen: Settings) -> None:
    write_initial(chosen)
    routes = json.dumps(json.loads((chosen.home / "envoy" / "rds" / "rds.json").read_text()))
    assert '"start": "1000002"' in routes
    assert "larger than 1000001 bytes" in routes
    assert "20971521" not in routes


def test_the_gateway_s_other_lengths_follow(chosen: Settings) -> None:
    assert chosen.body_limits.max_batch_bytes == 2_000_002
    assert chosen.body_limits.max_message_bytes == 1_000_001 + 64 * 1024
    assert replace(chosen, service_variables=()).body_limits.max_body_bytes == 20 * 1024**2
