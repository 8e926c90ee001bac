"""JSON Web Tokens of an OAuth 2 or OpenID Connect issuer: which keys, algorithms, issuer and audience is pinned here.

What a token says about its own verification (`jku`, `jwk`, `x5u`, `crit`) chooses nothing.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from bentos.kit.access import issuer
from bentos.kit.access.settings import TokenRules
from bentos.kit.errors import RequestRefused
from pipelines.core.access import ROLES, Credential

if TYPE_CHECKING:
    from joserfc.jwk import KeySet

MAX_BYTES = 8192
_LEEWAY_S = 30
_BELIEVED_S = 60.0
"""A verified token is not verified again for so long, nor beyond its end."""
_REFRESH_S = 300.0
"""Keys are read anew after this time, …"""
_ROTATION_S = 10.0
"""… or when a token names one that is not known, but not more often than this."""
_KEYS_GRACE_S = 3600.0
"""Keys that cannot be read anew are believed for so long."""
_MAX_BELIEVED = 10_000
_MALFORMED = (ValueError, TypeError, KeyError, AttributeError, RecursionError)
"""Beside JoseError, what parsers raise for what is no token: a header that is a list, claims nested without end."""

logger = logging.getLogger("darkroom.access")


class Tokens:
    """Verifies tokens. Belongs to one event loop."""

    def __init__(self, rules: TokenRules, clock: Callable[[], float] = time.time) -> None:
        self._rules, self._clock = rules, clock
        self._keys: KeySet | None = None
        self._read_at = self._tried_at = float("-inf")
        self._reading = asyncio.Lock()
        self._refreshing: asyncio.Task[None] | None = None
        self._believed: OrderedDict[bytes, tuple[Credential, float]] = OrderedDict()

    async def find(self, token: str) -> Credential | None:
        """Who shows the token; None where it is not valid. Raises RequestRefused (503) where there are no keys yet."""
        if len(token) > MAX_BYTES or token.count(".") != 2:
            return None
        digest = hashlib.sha256(token.encode()).digest()
        known = self._believed.get(digest)
        if known is not None and self._clock() < known[1]:
            return known[0]
        keys = await self._current_keys(_key_id(token))
        claims = self._verified(token, keys)
        if claims is None:
            return None
        credential = self._credential(claims)
        self._believed[digest] = (credential, min(claims["exp"] + _LEEWAY_S, self._clock() + _BELIEVED_S))
        if len(self._believed) > _MAX_BELIEVED:
            self._believed.popitem(last=False)
        return credential

    def _verified(self, token: str, keys: KeySet) -> Mapping[str, Any] | None:
        from joserfc import jwt
        from joserfc.errors import JoseError

        rules = self._rules
        registry = jwt.JWTClaimsRegistry(
            now=lambda: int(self._clock()),
            leeway=_LEEWAY_S,
            iss={"essential": True, "value": rules.issuer},
            aud={"essential": True, "value": rules.audience},
            exp={"essential": True},
            sub={"essential": True},
        )
        try:
            decoded = jwt.decode(token, keys, algorithms=list(rules.algorithms))
            registry.validate(decoded.claims)
            str(decoded.claims["sub"]).encode()  # it goes into logs and the database
        except (JoseError, *_MALFORMED) as error:
            logger.info("token refused", extra={"reason": f"{type(error).__name__}: {error}"[:200]})
            return None
        return dict(decoded.claims)

    def _credential(self, claims: Mapping[str, Any]) -> Credential:
        given = _claim(claims, self._rules.role_claim)
        names = [given] if isinstance(given, str) else given if isinstance(given, list) else []
        # Of several the one that may most: roles are listed in that order.
        found = [role for role in ROLES if role in names]
        models = _claim(claims, self._rules.models_claim)
        only = models if isinstance(models, list) else [models]
        return Credential(
            id=f"jwt:{claims['sub']}"[:200],
            role=found[-1] if found else "none",
            models=None if models is None else frozenset(str(one) for one in only),
            per_minute=self._rules.per_minute,
        )

    # --- the issuer's keys ------------------------------------------------------------------------------------------

    async def _current_keys(self, key_id: str | None) -> KeySet:
        """Who shows a token of a known key never waits for the issuer, however slow it is."""
        keys, age = self._keys, self._clock() - self._read_at
        if keys is not None and age < _KEYS_GRACE_S and key_id in {None, *(key.kid for key in keys.keys)}:
            if age > _REFRESH_S and (self._refreshing is None or self._refreshing.done()):
                self._refreshing = asyncio.create_task(self._read_keys())
            return keys
        await self._read_keys()
        if self._keys is None or self._clock() - self._read_at > _KEYS_GRACE_S:
            raise RequestRefused(
                503, "keys_unavailable", "the token issuer's keys cannot be read; try again", retry_after_s=10
            )
        return self._keys

    async def _read_keys(self) -> None:
        """One at a time, and not again for a while: unknown keys in tokens must not become a flood of fetches."""
        from joserfc.errors import JoseError
        from joserfc.jwk import KeySet

        async with self._reading:
            if self._clock() - self._tried_at <= _ROTATION_S:
                return
            self._tried_at = self._clock()
            try:
                found = KeySet.import_key_set(json.loads(await self._fetched()))
            except (OSError, JoseError, *_MALFORMED) as error:
                logger.warning("the issuer's keys cannot be read", extra={"reason": f"{type(error).__name__}: {error}"})
                return
            self._keys, self._read_at = found, self._clock()

    async def _fetched(self) -> bytes:
        """Requests wait for it, and so not longer than for two answers, whatever they are read from."""
        async with asyncio.timeout(2 * issuer.FETCH_TIMEOUT_S + 1):
            return await asyncio.to_thread(issuer.read_key_set, self._rules)


def _key_id(token: str) -> str | None:
    """The key that a token names, unverified: only good for deciding whether to read keys anew."""
    from joserfc import jws
    from joserfc.errors import JoseError

    try:
        found = jws.extract_compact(token.encode()).headers().get("kid")
    except (JoseError, *_MALFORMED):
        return None
    return found if isinstance(found, str) else None


def _claim(claims: Mapping[str, Any], path: str) -> object:
    found: object = claims
    # Names with dots, such as URLs, are looked for whole first.
    if path in claims:
        return claims[path]
    for name in path.split("."):
        if not isinstance(found, dict):
            return None
        found = found.get(name)
    return found
