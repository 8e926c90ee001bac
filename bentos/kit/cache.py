"""Answers kept in memory, the least recently used given up first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

from bentos.kit.telemetry import CACHE_BYTES, CACHE_LOOKUPS
from bentos.kit.tracing import say

V = TypeVar("V")

_HIT, _MISS = (CACHE_LOOKUPS.labels("memory", result) for result in ("hit", "miss"))


class Cache(Generic[V]):
    """At most `max_bytes` of values, as counted by whoever puts them in. Belongs to one event loop."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._found: OrderedDict[Hashable, tuple[V, int]] = OrderedDict()

    @property
    def enabled(self) -> bool:
        return self._max_bytes > 0

    def get(self, key: Hashable) -> V | None:
        found = self._found.get(key)
        if found is None:
            _MISS.inc()
            return None
        self._found.move_to_end(key)
        _HIT.inc()
        say("darkroom.cache_hit", True)
        return found[0]

    def put(self, key: Hashable, value: V, num_bytes: int) -> None:
        """Keep a value; one that is larger than the whole cache is not kept."""
        if key in self._found or num_bytes > self._max_bytes:
            return
        self._found[key] = (value, num_bytes)
        self._num_bytes += num_bytes
        while self._num_bytes > self._max_bytes:
            _, (_, freed) = self._found.popitem(last=False)
            self._num_bytes -= freed
        CACHE_BYTES.set(self._num_bytes)
