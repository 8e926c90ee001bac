"""What a person may set of every serving process by environment variable, for one process and for a platform alike.

A platform checks them when it starts and hands them to the processes that it starts; a process reads them again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pipelines.core import limits
from pipelines.core.errors import UserError

_MIB = 1024**2


@dataclass(frozen=True, kw_only=True)
class Number:
    """A variable that holds a whole number."""

    name: str
    default: int
    minimum: int = 1
    maximum: int

    def read(self, environment: Mapping[str, str], default: int | None = None) -> int:
        """Its value; `default` where a service has one of its own. Raises UserError naming the variable."""
        text = environment.get(self.name) or str(self.default if default is None else default)
        if not text.isdecimal() or not self.minimum <= int(text) <= self.maximum:
            raise UserError(f"{self.name}={text!r}: expected a number from {self.minimum} to {self.maximum}")
        return int(text)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A variable that holds one of a few words; without one, the first."""

    name: str
    allowed: tuple[str, ...]

    def read(self, environment: Mapping[str, str]) -> str:
        """Its value. Raises UserError naming the variable."""
        text = environment.get(self.name) or self.allowed[0]
        if text not in self.allowed:
            raise UserError(f"{self.name}={text!r}: expected one of {', '.join(self.allowed)}")
        return text


MAX_BATCH = Number(name="DARKROOM_MAX_BATCH", default=32, maximum=1024)
MAX_WAITING = Number(name="DARKROOM_MAX_WAITING", default=256, maximum=100_000)
MAX_WAIT_MS = Number(name="DARKROOM_MAX_WAIT_MS", default=200, maximum=600_000)
MAX_IMAGES = Number(name="DARKROOM_MAX_IMAGES", default=64, maximum=100_000)
MAX_BODY_BYTES = Number(name="DARKROOM_MAX_BODY_BYTES", default=limits.MAX_BODY_BYTES, maximum=2**31)
MAX_BATCH_BYTES = Number(name="DARKROOM_MAX_BATCH_BYTES", default=limits.MAX_BATCH_BYTES, maximum=2**31)
MAX_BYTES_IN_FLIGHT = Number(name="DARKROOM_MAX_BYTES_IN_FLIGHT", default=128 * _MIB, maximum=2**40)
CACHE_BYTES = Number(name="DARKROOM_CACHE_BYTES", default=64 * _MIB, minimum=0, maximum=2**40)
PROVIDER = Choice(name="DARKROOM_PROVIDER", allowed=("auto", "cpu", "cuda"))

_ALL = (
    *(MAX_BATCH, MAX_WAITING, MAX_WAIT_MS, MAX_IMAGES),
    *(MAX_BODY_BYTES, MAX_BATCH_BYTES, MAX_BYTES_IN_FLIGHT, CACHE_BYTES),
    PROVIDER,
)


def given(environment: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """Those that somebody has set, checked: services keep their defaults of the others. Raises UserError."""
    return tuple((one.name, str(one.read(environment))) for one in _ALL if environment.get(one.name))
