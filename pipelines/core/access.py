"""Who may do what: roles, the scopes that each has, and the form of an API key.

A key is `dk_`, 256 random bits in base64url, and a checksum: junk is told from keys without a look into any store, and
scanners for leaked secrets know it by its shape. Only its SHA-256 is stored; over 256 random bits that needs no salt.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

_SHAPE = re.compile(r"dk_[A-Za-z0-9_-]{43}[0-9a-f]{8}")


DEPLOYED_HEADER, DEFAULT_HEADER = "x-darkroom-deployed", "x-darkroom-default"
"""Which models there are, and which is the default, as the gateway says it to the process that lists them."""


class Scope(StrEnum):
    """What a route or a call asks of its caller."""

    PUBLIC = "public"
    """Nothing: probes only."""
    READ_MODELS = "models:read"
    PREDICT = "predict"
    READ_METRICS = "metrics:read"
    OPERATE = "models:operate"
    MANAGE_KEYS = "keys:manage"


ROLES: Mapping[str, frozenset[Scope]] = {
    "viewer": frozenset({Scope.READ_MODELS}),
    "predictor": frozenset({Scope.READ_MODELS, Scope.PREDICT}),
    "operator": frozenset({Scope.READ_MODELS, Scope.PREDICT, Scope.READ_METRICS, Scope.OPERATE}),
    "admin": frozenset(Scope) - {Scope.PUBLIC},
}
"""Each role has what the one before it has."""


@dataclass(frozen=True, kw_only=True)
class Credential:
    """Somebody who has shown who they are."""

    id: str
    """Of an API key, or `jwt:` and the token's subject: what limits, quotas and the audit log go by."""
    role: str
    models: frozenset[str] | None = None
    """The only models it is good for; None: all."""
    per_minute: int | None = None
    """Images a minute; None: as many as the service can."""
    per_day: int | None = None
    """Images a day (UTC)."""

    def may(self, scope: Scope) -> bool:
        return scope in ROLES.get(self.role, frozenset())

    def knows(self, model: str) -> bool:
        return self.models is None or model in self.models


def new_key() -> str:
    """A key that nobody has seen."""
    body = f"dk_{secrets.token_urlsafe(32)}"
    return body + _checksum(body)


def well_formed(text: str) -> bool:
    """True where the text can be a key at all."""
    return bool(_SHAPE.fullmatch(text)) and _checksum(text[:-8]) == text[-8:]


def digest_of(key: str) -> str:
    """What is stored of a key: SHA-256 in hex."""
    return hashlib.sha256(key.encode()).hexdigest()


def _checksum(body: str) -> str:
    return f"{zlib.crc32(body.encode()):08x}"
