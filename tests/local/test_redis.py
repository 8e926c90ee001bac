"""The Redis that serving processes share, as a platform knows it."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from example_packages import coloured
from redis import Redis
from redis_server import RedisProcess, running_redis
from serving_platform import ACTOR, SPEC, VARIABLE, ask, deploy, in_own_schema, make_build, serving, wait_until

from pipelines import settings as settings_module
from pipelines.adapters import database
from pipelines.core.access import new_key
from pipelines.core.errors import UserError
from pipelines.local import access, platform
from pipelines.local.redis import RedisWatch, check
from pipelines.settings import Settings

SECRET = "a-password-that-nobody-reads"
TWO = replace(SPEC, workers=2)
IMPORT = "import sys, bentos.classifier.http, bentos.kit.worker; print('redis' in sys.modules)"


def test_serving_processes_are_told_where_the_url_is_and_never_what_it_is(
    home_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = home_settings.home / "redis-url"
    path.write_text(f"rediss://:{SECRET}@redis.example/0\n")
    monkeypatch.setenv("DARKROOM_REDIS_URL_FILE", str(path))
    monkeypatch.setenv("DARKROOM_REDIS_ANSWERS_S", "60")
    settings = settings_module.load()
    check(settings)
    told = {name: value for name, value in access.environment(settings, 2).items() if "REDIS" in name}
    assert told == {
        "DARKROOM_REDIS_URL_FILE": str(path),
        "DARKROOM_REDIS_ANSWERS_S": "60",
        "DARKROOM_REDIS_MAX_ANSWER_BYTES": "262144",
    }
    assert SECRET not in repr(settings)


def test_without_one_they_are_told_nothing(home_settings: Settings) -> None:
    check(home_settings)
    assert not any("REDIS" in name for name in access.environment(home_settings, 2))
    done = subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("text", ["", f"http://:{SECRET}@127.0.0.1", f"redis://{SECRET} and more", SECRET])
def test_a_file_without_a_url_is_named_and_not_quoted(home_settings: Settings, text: str) -> None:
    path = home_settings.home / "redis-url"
    path.write_text(text)
    with pytest.raises(UserError, match=r"redis-url: expected one line") as caught:
        check(replace(home_settings, redis_url_file=path))
    assert SECRET not in str(caught.value)
    with pytest.raises(UserError, match="missing: No such file"):
        check(replace(home_settings, redis_url_file=Path(f"{path}-missing")))


def test_status_learns_that_it_is_away_and_back(home_settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    with running_redis(home_settings.home / "redis", "--requirepass", SECRET) as redis:
        redis.url = f"redis://:{SECRET}@127.0.0.1:{redis.port}"
        watch = RedisWatch(replace(home_settings, redis_url_file=redis.url_file), period_s=0.05)
        watch.start()
        redis.kill()
        wait_until(lambda: watch.trouble)
        assert watch.trouble == f"Redis of {redis.url_file}: ConnectionError"
        redis.start()
        wait_until(lambda: not watch.trouble)
        watch.end()
    said = capsys.readouterr().err
    assert [line.partition(" redis: ")[2] for line in said.splitlines()] == [
        f"Redis is away (Redis of {redis.url_file}: ConnectionError)",
        "Redis is back",
    ]


@pytest.mark.heavy
def test_a_platform_is_up_without_it_and_says_so(home_settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    with running_redis(home_settings.home / "redis") as redis:
        monkeypatch.setenv("DARKROOM_REDIS_URL_FILE", str(redis.url_file))
        try:
            started = darkroom("up", "--without", "airflow", "--without", "mlflow", "--without", "step-host")
            assert started.returncode == 0, started.stderr
            assert troubles() == []
            redis.kill()
            wait_until(troubles)
            assert troubles() == [
                f"rates and answers are not shared: Redis of {home_settings.home}/redis/redis-url: ConnectionError"
            ]
            redis.start()
            wait_until(lambda: troubles() == [])
        finally:
            platform.down(home_settings)


@pytest.mark.heavy
def test_processes_behind_the_gateway_keep_one_limit_and_share_answers(
    home_settings: Settings, postgres_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, in_own_schema(postgres_settings))
    monkeypatch.setenv("DARKROOM_DEFAULT_MODEL", "colours")
    with running_redis(tmp_path / "redis") as redis:
        monkeypatch.setenv("DARKROOM_REDIS_URL_FILE", str(redis.url_file))
        settings = settings_module.load()
        with serving(settings):
            deployed = deploy(settings, make_build(settings, tmp_path, model="colours", version=1), TWO)
            assert deployed.state == "live"
            # The proof of the processes is theirs alone: nothing was shared before the first client.
            assert _answers_in(redis) == 0
            key = new_key()
            once = database.Grant(name="once", role="predictor", per_minute=6)
            database.create_key(settings.database_url("darkroom"), key, once, actor=ACTOR)
            header = {"Authorization": f"Bearer {key}"}
            statuses = [ask(settings.gateway_port, "/v1/classify", coloured("red"), header)[0] for _ in range(8)]
            assert sorted(statuses) == [200] + [429] * 7  # each process by itself would have given one
            wait_until(lambda: _answers_in(redis) == 1)


def _answers_in(redis: RedisProcess) -> int:
    with Redis.from_url(redis.url) as client:
        return len(list(client.scan_iter("darkroom:answer:*")))


def troubles() -> list[str]:
    return list(json.loads(darkroom("status", "--json").stdout)["troubles"])


def darkroom(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pipelines.cli.main", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
