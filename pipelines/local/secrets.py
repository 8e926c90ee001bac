"""The secrets of one installation, and the public key to one: made once, in files of mode 0600 in a folder of 0700."""

from __future__ import annotations

import base64
import json
import os
import secrets
from collections.abc import Callable
from pathlib import Path

from pipelines.adapters.signing import public_pem
from pipelines.core.access import new_key
from pipelines.core.errors import UserError
from pipelines.settings import DATABASES, PLATFORM_KEY, SEARCH_ROLE, SERVING_ROLE, Settings

POSTGRES_SUPERUSER = "postgres-superuser"
AIRFLOW_PASSWORDS = "airflow-passwords.json"
ADMIN_PASSWORD = "airflow-admin"  # noqa: S105  (a file name)
FIRST_KEY = "first-key"
"""An API key of the role admin, for whoever may read this folder."""
AUDIT_KEY = "audit-anchors"
"""Signs the anchors of the audit log."""
AUDIT_PUBLIC_KEY = "audit-anchors.pem"
"""What verifiers pin; a key that was replaced stays in the file, behind the new one."""


def _token() -> str:
    return secrets.token_urlsafe(32)


def _fernet_key() -> str:
    return base64.urlsafe_b64encode(secrets.token_bytes(32)).decode()


MAKERS: dict[str, Callable[[], str]] = {
    POSTGRES_SUPERUSER: _token,
    **{f"postgres-{role}": _token for role in (*DATABASES, SERVING_ROLE, SEARCH_ROLE)},
    "airflow-jwt": _token,
    "airflow-secret-key": _token,
    "airflow-fernet": _fernet_key,
    ADMIN_PASSWORD: lambda: secrets.token_urlsafe(12),
    PLATFORM_KEY: _token,
    FIRST_KEY: new_key,
    AUDIT_KEY: lambda: base64.b64encode(secrets.token_bytes(32)).decode(),
}


def ensure(settings: Settings) -> None:
    """Make what is missing. Two processes that do so at once agree. Raises UserError where the home is not ours."""
    folder = settings.secrets
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
        for name, make in MAKERS.items():
            _make_once(folder / name, make)
        # The form that Airflow's simple auth manager reads; where it exists, Airflow prints no password.
        admin = settings.secret(ADMIN_PASSWORD)
        _make_once(folder / AIRFLOW_PASSWORDS, lambda: json.dumps({"admin": admin}))
        _make_once(folder / AUDIT_PUBLIC_KEY, lambda: public_pem(settings.secret(AUDIT_KEY)))
    except PermissionError as error:
        raise UserError(
            f"{error.filename}: this user may not write it; run as the user who owns {settings.home}, or set "
            "DARKROOM_HOME to a folder of your own"
        ) from error


def _make_once(path: Path, make: Callable[[], str]) -> None:
    if path.exists():
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(make() + "\n")
            file.flush()
            os.fsync(file.fileno())
        # A link and not a rename: whoever came first wins, and a reader never sees half a secret.
        os.link(temporary, path)
    except FileExistsError:
        return
    finally:
        temporary.unlink(missing_ok=True)
