"""The one place where a request is let in: every transport asks here, and nothing is allowed that is not asked."""

from __future__ import annotations

import hmac
from dataclasses import dataclass, field

from bentos.kit.access.key_ring import KeyRing
from bentos.kit.access.key_store import KeyStore, PostgresKeyStore
from bentos.kit.access.limits import Quotas, Rates
from bentos.kit.access.settings import AccessSettings
from bentos.kit.access.shared_rates import SharedRates
from bentos.kit.access.tokens import Tokens
from bentos.kit.errors import RequestRefused
from bentos.kit.shared.server import RedisServer
from pipelines.core.access import Credential, Scope, digest_of, well_formed

ANYBODY = Credential(id="anonymous", role="admin")
"""Whoever asks a process whose authentication is off."""
_PLATFORM = Credential(id="platform", role="operator")
"""The supervisor, which proves a process before it serves."""


@dataclass(frozen=True, kw_only=True)
class Caller:
    """Who sent a request, and under which id it is logged."""

    credential: Credential
    request_id: str
    guard: Guard
    authorization: bytes | None = field(repr=False)

    async def charge(self, num_images: int = 1) -> None:
        """Count images beyond the request's first. Raises RequestRefused (429)."""
        if num_images:
            await self.guard.charge(self.credential, num_images)

    async def check(self) -> None:
        """Ask again in the middle of a long connection. Raises RequestRefused where the credential is not good now."""
        await self.guard.check(self.authorization, self.credential)


class Guard:
    """Belongs to one event loop."""

    def __init__(
        self,
        *,
        required: bool = True,
        store: KeyStore | None = None,
        tokens: Tokens | None = None,
        platform_key: str = "",
        share: float = 1.0,
        redis: RedisServer | None = None,
        scope: str = "",
    ) -> None:
        """`share`: of each rate, what this process gives by itself; with `redis`, the processes of a `scope` keep rates
        together.
        """
        self._required = required
        self._store = store
        self._ring = KeyRing(store) if store is not None else None
        self._tokens = tokens
        self._platform_key = platform_key.encode()
        self._rates = Rates(share)
        self._shared_rates = SharedRates(redis, self._rates, scope=scope) if redis is not None else None
        self._quotas = Quotas(store)

    async def admit(self, authorization: bytes | None, scope: Scope, model: str | None, request_id: str) -> Caller:
        """Who asks, where they may.

        `authorization` is the header's value, `model` what the request is about, if about one. Raises RequestRefused:
        401 without a valid credential, 403 where it is not good for this, 429 for too many, 503 where nobody can say.
        """
        if scope is Scope.PUBLIC or not self._required:
            credential = ANYBODY
        else:
            credential = await self._who(authorization)
            if not credential.may(scope):
                raise RequestRefused(403, "forbidden", f"role {credential.role!r} has no scope {scope.value!r}")
            if model is not None and not credential.knows(model):
                raise RequestRefused(403, "forbidden", f"this credential is not good for model {model!r}")
            if scope is Scope.PREDICT:
                await self._quotas.prepare(credential)
                await self.charge(credential, 1)
        return Caller(credential=credential, request_id=request_id, guard=self, authorization=authorization)

    async def check(self, authorization: bytes | None, credential: Credential) -> None:
        """Raises RequestRefused (401) where an authorization is not what it was."""
        if self._required and await self._who(authorization) != credential:
            raise _unauthenticated("the credential has changed")

    async def charge(self, credential: Credential, num_images: int) -> None:
        """Raises RequestRefused (429)."""
        if self._shared_rates is None:
            self._rates.take(credential, num_images)
        else:
            await self._shared_rates.take(credential, num_images)
        self._quotas.take(credential, num_images)

    async def close(self) -> None:
        if self._shared_rates is not None:
            await self._shared_rates.close()
        await self._quotas.close()
        if self._store is not None:
            await self._store.close()

    async def _who(self, authorization: bytes | None) -> Credential:
        scheme, _, secret = (authorization or b"").partition(b" ")
        secret = secret.strip()
        if scheme.lower() != b"bearer" or not secret:
            raise _unauthenticated("send the header `Authorization: Bearer KEY`")
        if self._platform_key and hmac.compare_digest(secret, self._platform_key):
            return _PLATFORM
        found = await self._find(secret.decode("latin-1"))
        if found is None:
            raise _unauthenticated("the key or token is not valid, has expired or was revoked")
        return found

    async def _find(self, secret: str) -> Credential | None:
        if well_formed(secret):
            return await self._ring.find(digest_of(secret)) if self._ring is not None else None
        return await self._tokens.find(secret) if self._tokens is not None else None


def make_guard(settings: AccessSettings, redis: RedisServer | None = None, *, scope: str = "") -> Guard:
    """A guard with its stores. Raises OSError where the platform's key cannot be read."""
    rules = settings.token_rules
    return Guard(
        required=settings.required,
        store=PostgresKeyStore(settings.keys_url_file) if settings.keys_url_file else None,
        tokens=Tokens(rules) if rules else None,
        platform_key=settings.platform_key_file.read_text().strip() if settings.platform_key_file else "",
        share=1 / settings.num_processes,
        redis=redis,
        scope=scope,
    )


def _unauthenticated(detail: str) -> RequestRefused:
    return RequestRefused(401, "unauthenticated", detail)
