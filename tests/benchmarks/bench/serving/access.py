"""Access as in service: our worker asks for a token, and counts its images against a rate that nobody reaches.

A token and not an API key, since its issuer's keys lie in a file and need no database; both are looked up by their
digest once they are known.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_ISSUER, _AUDIENCE = "https://issuer.example", "bench"
_DAY_S = 86_400


@dataclass(frozen=True, kw_only=True)
class Access:
    variables: Mapping[str, str]
    """Of the worker's environment."""
    headers: Mapping[str, str]
    """Of every request."""


@functools.cache
def access(folder: Path) -> Access:
    """The issuer's keys, a file in the folder, and an operator's token."""
    from joserfc import jwt
    from joserfc.jwk import KeySet, RSAKey

    key = RSAKey.generate_key(2048, {"kid": "bench", "use": "sig"}, private=True)
    path = folder / "issuer.json"
    path.write_text(json.dumps(KeySet([key]).as_dict(private=False)))
    claims = {
        **{"iss": _ISSUER, "aud": _AUDIENCE, "sub": "bench", "darkroom_role": "operator"},
        "exp": int(time.time()) + _DAY_S,
    }
    token = jwt.encode({"alg": "RS256", "kid": "bench"}, claims, key)
    variables = {
        "DARKROOM_AUTH": "required",
        "DARKROOM_JWT_ISSUER": _ISSUER,
        "DARKROOM_JWT_AUDIENCE": _AUDIENCE,
        "DARKROOM_JWT_KEYS": str(path),
        "DARKROOM_JWT_PER_MINUTE": str(10**9),
    }
    return Access(variables=variables, headers={"Authorization": f"Bearer {token}"})
