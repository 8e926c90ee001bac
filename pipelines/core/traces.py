"""Where traces go and how many requests make one: said once, for the gateway and for serving processes."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

from pipelines.core.errors import UserError

ENDPOINT, SAMPLE = "DARKROOM_OTLP_ENDPOINT", "DARKROOM_TRACE_SAMPLE"
DEFAULT_SAMPLE = "0.01"
_DEFAULT_PORT = 4318
"""Of OTLP over HTTP."""


@dataclass(frozen=True, kw_only=True)
class Tracing:
    """Build it with `tracing()`."""

    host: str
    port: int
    path: str
    """Of the collector, where spans are posted as protobuf."""
    sample: float
    """Share of the requests without a trace of their own that get one, from 0 to 1."""

    @property
    def address(self) -> str:
        return f"{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"

    @property
    def url(self) -> str:
        return f"http://{self.address}{self.path}"

    @property
    def environment(self) -> dict[str, str]:
        """The variables that say the same to another process."""
        return {ENDPOINT: self.url.removesuffix("/v1/traces"), SAMPLE: str(self.sample)}


def tracing(endpoint: str, sample: str) -> Tracing | None:
    """From the variables' texts; None where there is no endpoint. Raises UserError naming the variable.

    An endpoint is the collector's base, to which OTLP adds `/v1/traces`.
    """
    share = _share(sample or DEFAULT_SAMPLE)
    if not endpoint:
        return None
    try:
        parts = urlsplit(endpoint)
        port = parts.port or _DEFAULT_PORT
    except ValueError:
        raise _not_an_endpoint() from None
    # Spans go to a collector beside us, in the clear; what it does further on (TLS, credentials) is its own matter.
    if parts.scheme != "http" or not parts.hostname or parts.username or parts.query or parts.fragment:
        raise _not_an_endpoint()
    path = f"{parts.path.rstrip('/')}/v1/traces"
    return Tracing(host=parts.hostname, port=port, path=path, sample=share)


def _not_an_endpoint() -> UserError:
    # Without the text, which may hold a password.
    return UserError(
        f"{ENDPOINT}: not the base URL of a collector; expected OTLP over plain HTTP without credentials, "
        "such as http://127.0.0.1:4318"
    )


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise UserError(f"{SAMPLE}={text!r}: expected a share from 0 to 1, such as {DEFAULT_SAMPLE}")
    return share
