"""How a Redis is found, by its URL alone, and what is said of one that is not there."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest
from redis_server import RedisProcess, running_redis

from bentos.kit.shared.server import RedisAway, RedisServer
from pipelines.local import certificates
from pipelines.local.ports import free_port
from pipelines.settings import Settings

SECRET = "a-password-that-nobody-reads"


def found(url_file: Path) -> bool:
    """Whether it answers."""

    async def work() -> bool:
        server = RedisServer(url_file)
        await server.open()
        try:
            return (await server.ask([("GET", "darkroom:nothing")])) == [None]
        except RedisAway:
            return False
        finally:
            await server.close()

    return asyncio.run(work())


def named(folder: Path, url: str) -> Path:
    (folder / "url").write_text(url)
    return folder / "url"


def test_by_password(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with running_redis(tmp_path, "--requirepass", SECRET) as redis:
        assert found(named(tmp_path, f"redis://:{SECRET}@127.0.0.1:{redis.port}/1"))
        assert caplog.text == ""
        for wrong in ("", f":not-{SECRET}@"):
            assert not found(named(tmp_path, f"redis://{wrong}127.0.0.1:{redis.port}"))
        reasons = [vars(record)["reason"] for record in caplog.records]
        assert reasons == ["Authentication required.", "invalid username-password pair or user is disabled."]
        _says_nothing_of_the_url(caplog, redis)


def test_by_a_user_who_may_do_no_more_than_this(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    user = ("--user", "serving", "on", f">{SECRET}", "~darkroom:*", "+set", "+get", "+mget", "+eval", "+time")
    with running_redis(tmp_path, *user, "--user", "default", "off") as redis:
        assert found(named(tmp_path, f"redis://serving:{SECRET}@127.0.0.1:{redis.port}"))
    assert caplog.text == ""


def test_by_tls(home_settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    certificates.ensure(home_settings)
    chain, _ = home_settings.tls_files
    options = [
        "--tls-cert-file",
        chain,
        "--tls-key-file",
        chain,
        "--tls-ca-cert-file",
        certificates.authority(home_settings),
    ]
    options += ["--tls-auth-clients", "no", "--requirepass", SECRET]
    folder, port = home_settings.home / "redis", free_port()
    with running_redis(folder, *map(str, options), port=port) as redis:
        url = f"rediss://:{SECRET}@localhost:{port}/0"
        assert found(named(folder, f"{url}?ssl_ca_certs={certificates.authority(home_settings)}"))
        assert caplog.text == ""
        assert not found(named(folder, url))  # by an authority that nobody here knows
        assert "TLS: CERTIFICATE_VERIFY_FAILED" in str([vars(record).get("reason") for record in caplog.records])
        _says_nothing_of_the_url(caplog, redis)


def test_by_socket(tmp_path: Path) -> None:
    with running_redis(tmp_path, "--unixsocket", str(tmp_path / "s")):
        assert found(named(tmp_path, f"unix://{tmp_path}/s"))


@pytest.mark.parametrize(
    "url",
    [
        f"redis://:{SECRET}@127.0.0.1:1/0",
        f"redis://:{SECRET}@nowhere.invalid/0",
        f"http://:{SECRET}@127.0.0.1/0",
        f"redis://:{SECRET}@127.0.0.1:{SECRET}/0",
        f"redis://:{SECRET}@127.0.0.1/0?{SECRET}=1",
        f"redis://:{SECRET}@127.0.0.1/0?db={SECRET}",
        "",
    ],
)
def test_what_is_no_redis_is_away_and_its_url_is_not_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, url: str
) -> None:
    with caplog.at_level(logging.DEBUG):
        assert not found(named(tmp_path, url))
    assert [record.message.partition(":")[0] for record in caplog.records if record.name.startswith("darkroom")] == [
        "Redis is away"
    ]
    _says_nothing_of_the_url(caplog)


def test_a_file_that_is_missing_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert not found(tmp_path / "missing")
    (record,) = caplog.records
    assert (vars(record)["reason"], vars(record)["url_file"]) == (
        "No such file or directory",
        str(tmp_path / "missing"),
    )


def _says_nothing_of_the_url(caplog: pytest.LogCaptureFixture, redis: RedisProcess | None = None) -> None:
    said = " ".join(str(vars(record)) for record in caplog.records if record.name.startswith("darkroom"))
    assert said
    assert SECRET not in said
    assert "nowhere" not in said
    assert redis is None or str(redis.port) not in said
