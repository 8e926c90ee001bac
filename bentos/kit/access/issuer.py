"""The key set of a token issuer, from a file or by HTTP. What an issuer answers leads to no file or plain address."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from bentos.kit.access.settings import TokenRules

FETCH_TIMEOUT_S = 3.0
"""Of one answer, and of every wait for its next bytes."""
_MAX_BYTES = 1_000_000
_LOCAL = ("127.0.0.1", "localhost", "::1")


def read_key_set(rules: TokenRules) -> bytes:
    """JSON, unparsed. Raises OSError, ValueError, KeyError, TypeError."""
    place = rules.keys
    if place and not urlsplit(place).scheme:
        return Path(place).read_bytes()
    if not place:
        address = f"{rules.issuer.rstrip('/')}/.well-known/openid-configuration"
        place = keys_address(rules.issuer, json.loads(_download(address)))
    return _download(place)


def keys_address(issuer: str, configuration: Mapping[str, Any]) -> str:
    """Where the issuer's OpenID configuration says that its keys are. Raises ValueError, KeyError."""
    if configuration["issuer"] != issuer:  # OpenID Connect Discovery 1.0, 4.3
        raise ValueError(f"the configuration is of issuer {configuration['issuer']!r}")
    place = str(configuration["jwks_uri"])
    if urlsplit(issuer).scheme == "https" and urlsplit(place).scheme != "https":
        raise ValueError(f"jwks_uri {place!r}: expected an https address")
    return place


class _NoRedirections(urllib.request.HTTPRedirectHandler):
    """They could lead from https to http, or to an address that only this machine reaches."""

    def redirect_request(self, *_arguments: Any, **_options: Any) -> None:
        return None


def _download(place: str) -> bytes:
    """From https; from http only on this machine. Raises OSError, ValueError."""
    parts = urlsplit(place)
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in _LOCAL):
        raise ValueError(f"{place}: expected an https address")
    deadline = time.monotonic() + FETCH_TIMEOUT_S
    found = b""
    with urllib.request.build_opener(_NoRedirections).open(place, timeout=FETCH_TIMEOUT_S) as response:
        while more := response.read1(65_536):
            found += more
            if len(found) > _MAX_BYTES:
                raise ValueError(f"{place}: more than {_MAX_BYTES:,} bytes")
            if time.monotonic() > deadline:
                raise TimeoutError(f"{place}: not read within {FETCH_TIMEOUT_S:g} s")
    return found
