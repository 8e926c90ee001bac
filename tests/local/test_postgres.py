"""The embedded PostgreSQL: roles, databases, kills, stale locks, and a home that its user cannot walk to."""

from __future__ import annotations

import os
import subprocess
import threading
from pathlib import Path

import psycopg
import pytest

from pipelines.core.errors import UserError
from pipelines.local import postgres, schema, secrets
from pipelines.settings import DATABASES, Settings


def test_every_owner_has_a_database_of_its_own(postgres_settings: Settings) -> None:
    for owner in DATABASES:
        with psycopg.connect(postgres_settings.database_url(owner)) as connection:
            assert connection.execute("SELECT current_user, current_database()").fetchone() == (owner, owner)
            assert connection.execute("SHOW listen_addresses").fetchone() == ("127.0.0.1",)
    stranger = postgres_settings.database_url("mlflow").removesuffix("mlflow") + "airflow"
    with pytest.raises(psycopg.OperationalError, match="permission denied"):
        psycopg.connect(stranger)


def test_feast_has_vectors(postgres_settings: Settings) -> None:
    with psycopg.connect(postgres_settings.database_url("feast")) as connection:
        assert connection.execute("SELECT '[1,2]'::vector <-> '[1,4]'::vector").fetchone() == (2.0,)


def test_a_password_is_needed(postgres_settings: Settings) -> None:
    with pytest.raises(psycopg.OperationalError, match="password"):
        psycopg.connect(host="127.0.0.1", port=postgres_settings.port("postgres"), user="postgres", password="guess")


def test_a_schema_version_stays_with_its_database(postgres_settings: Settings) -> None:
    url = postgres_settings.database_url("mlflow")
    schema.set_version(url, "mlflow 1.2.3")
    assert schema.version_of(url) == "mlflow 1.2.3"


def test_it_survives_a_kill_a_stale_lock_and_a_wrong_password(home_settings: Settings, tmp_path: Path) -> None:
    # Nobody but root can walk to this home: as root, the server keeps a right to, and no folder is opened.
    tmp_path.chmod(0o700)
    url = None
    server = postgres.start(home_settings)
    try:
        url = home_settings.database_url("darkroom")
        with psycopg.connect(url) as connection:
            connection.execute("CREATE TABLE kept AS SELECT 7 AS value")
        assert server.pid is not None
        os.kill(server.pid, 9)
        server.wait(10)
        postgres.prepare(home_settings)
        server.start()
        postgres.wait_ready(home_settings, server)
        with psycopg.connect(url) as connection:
            assert connection.execute("SELECT value FROM kept").fetchone() == (7,)
        # A second supervisor finds the first one's server and ends it, without loss.
        assert postgres.end_leftover(home_settings) == 1
        assert not server.alive()
        lock = postgres.data_folder(home_settings) / "postmaster.pid"
        lock.write_text(f"{os.getpid()}\n{postgres.data_folder(home_settings)}\n")
        server = postgres.start(home_settings)
        (home_settings.secrets / secrets.POSTGRES_SUPERUSER).write_text("another")
        with pytest.raises(UserError, match="secrets"):
            postgres.accepts(home_settings)
        assert not postgres.answers(home_settings)
    finally:
        postgres.stop(server)
    assert tmp_path.stat().st_mode & 0o777 == 0o700


def test_a_killed_initdb_leaves_nothing_in_the_way(home_settings: Settings) -> None:
    secrets.ensure(home_settings)
    partial = postgres.data_folder(home_settings).with_name("partial")
    partial.mkdir(parents=True)
    (partial / "half").write_text("")
    postgres.prepare(home_settings)
    assert (postgres.data_folder(home_settings) / "PG_VERSION").read_text().strip() == "18"
    assert not partial.exists()
    assert not partial.with_name("password").exists()


def test_no_secret_is_on_a_command_line(postgres_settings: Settings) -> None:
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    for path in postgres_settings.secrets.iterdir():
        assert path.read_text().strip() not in listed


def test_secrets_are_made_once_and_for_the_owner_alone(home_settings: Settings) -> None:
    threads = [threading.Thread(target=secrets.ensure, args=(home_settings,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = {path.name: path.read_text() for path in home_settings.secrets.iterdir()}
    assert set(found) == {*secrets.MAKERS, secrets.AIRFLOW_PASSWORDS, secrets.AUDIT_PUBLIC_KEY}
    assert home_settings.secrets.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in home_settings.secrets.iterdir()} == {0o600}
    secrets.ensure(home_settings)
    assert {path.name: path.read_text() for path in home_settings.secrets.iterdir()} == found
