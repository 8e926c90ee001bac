"""Spans of the requests that are traced. Who asks decides (W3C Trace Context), and where nobody does, a share is drawn.

A request that is not traced makes no object. The SDK that sends spans is imported where there is a collector only
(`trace_export`).
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field

Value = str | int | float | bool

_TRACEPARENT = re.compile(rb"(?!ff)[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
"""https://www.w3.org/TR/trace-context/#traceparent-header; later versions may say more behind the flags."""
_SAMPLED = 1
_MAX_STAGES = 192
"""Stages of one span: three for each of 64 images. A batch of thousands must not push others out of the queue."""


@dataclass(slots=True, eq=False, kw_only=True)
class Span:
    """One thing that a traced request did. Times are `time.perf_counter`'s, in seconds."""

    name: str
    trace_id: int
    parent_id: int
    """0: the trace begins here."""
    started: float
    wall_ns: int
    """What to add to nanoseconds of `time.perf_counter` for nanoseconds since 1970."""
    take: Callable[[Span], None]
    server: bool = False
    """It answers a request from outside this process."""
    status_key: str = "darkroom.status"
    span_id: int = field(default_factory=lambda: random.getrandbits(64) or 1)
    attributes: dict[str, Value] = field(default_factory=dict)
    ended: float = 0.0
    failed: bool = False
    num_stages: int = 0

    @property
    def ids(self) -> dict[str, str]:
        """As log lines have them."""
        return {"trace_id": f"{self.trace_id:032x}", "span_id": f"{self.span_id:016x}"}

    def child(self, name: str, started: float) -> Span:
        """A part of this one, which ends by itself."""
        return Span(
            name=name,
            trace_id=self.trace_id,
            parent_id=self.span_id,
            started=started,
            wall_ns=self.wall_ns,
            take=self.take,
        )

    def add(self, stage: str, began: float, ended: float, *, failed: bool = False, **attributes: Value) -> None:
        """A part that is over already."""
        self.num_stages += 1
        if self.num_stages > _MAX_STAGES:
            return
        part = self.child(stage, began)
        part.attributes = {f"darkroom.{name}": value for name, value in attributes.items()}
        part.ended, part.failed = ended, failed
        self.take(part)

    def end(self, status: int, reason: str) -> None:
        """`status` as HTTP has it; `reason` is `none` where all went well."""
        self.ended = time.perf_counter()
        self.attributes[self.status_key] = status
        if reason != "none":
            self.attributes["error.type"] = reason
        # OpenTelemetry: what the client did wrong is no error of the server's.
        self.failed = status >= 500
        if self.num_stages > _MAX_STAGES:
            self.attributes["darkroom.stages_left_out"] = self.num_stages - _MAX_STAGES
        self.take(self)


CURRENT: ContextVar[Span | None] = ContextVar("span", default=None)
"""Of the request, call or frame that the code works for."""


class Tracer:
    """Decides which requests are traced."""

    def __init__(self, *, sample: float, attributes: Mapping[str, str], take: Callable[[Span], None]) -> None:
        """`attributes` of every request's span; `take` gets spans as they end, and must not wait."""
        self._bound, self._attributes, self._take = sample * 2**64, attributes, take

    def begin(self, traceparent: bytes, started: float) -> Span | None:
        """The span of a request; None where it is not traced."""
        trace_id, parent_id, sampled = _parent(traceparent)
        if not trace_id:
            trace_id = random.getrandbits(128) or 1
            sampled = trace_id % 2**64 < self._bound
        if not sampled:
            return None
        return Span(
            name="",
            trace_id=trace_id,
            parent_id=parent_id,
            started=started,
            wall_ns=time.time_ns() - time.perf_counter_ns(),
            take=self._take,
            server=True,
            attributes=dict(self._attributes),
        )


def _parent(traceparent: bytes) -> tuple[int, int, bool]:
    """Ids of trace and span, and whether whoever asks samples it; zeros where there is none, or none that is valid."""
    found = _TRACEPARENT.fullmatch(traceparent)
    if found is None:
        return 0, 0, False
    trace_id, parent_id = int(found[1], 16), int(found[2], 16)
    if not trace_id or not parent_id:
        return 0, 0, False
    return trace_id, parent_id, bool(int(found[3], 16) & _SAMPLED)


_tracer: Tracer | None = None


def use(tracer: Tracer | None) -> None:
    """From now on, in this process."""
    global _tracer
    _tracer = tracer


def begin(traceparent: bytes, started: float) -> Span | None:
    """Begin a request's span and make it the current one. None where it is not traced."""
    if _tracer is None:
        return None
    span = _tracer.begin(traceparent, started)
    # None as well: the task of a pipelined request inherits what its predecessor left.
    CURRENT.set(span)
    return span


def begin_part(name: str, started: float, **attributes: Value) -> None:
    """Make a part of the current span the current one, in this task."""
    span = CURRENT.get()
    if span is not None:
        part = span.child(name, started)
        part.attributes = {f"darkroom.{key}": value for key, value in attributes.items()}
        CURRENT.set(part)


def say(name: str, value: Value) -> None:
    """An attribute of the current span, where there is one."""
    span = CURRENT.get()
    if span is not None:
        span.attributes[name] = value
