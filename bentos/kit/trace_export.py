"""OpenTelemetry's SDK: a thread of its own sends spans to the collector (OTLP, protobuf over HTTP), many at once.

Only this module imports it, and this module is imported only where there is a collector.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags

from bentos.kit.telemetry import SPANS
from bentos.kit.tracing import Span
from pipelines.core.traces import Tracing

_QUEUE = 8192
"""Spans that wait to be sent; beyond it the oldest are lost. 6 MB."""
_DELAY_MS = 1000
_TIMEOUT_S = 5.0
"""Of one batch, its second and third try included. As long may the end of the process wait for a collector."""

_SCOPE = InstrumentationScope("darkroom")
_SAMPLED = TraceFlags(TraceFlags.SAMPLED)
_MADE, _SENT, _LOST = SPANS.labels("made"), SPANS.labels("sent"), SPANS.labels("lost")
_FAILED, _UNSET = Status(StatusCode.ERROR), Status(StatusCode.UNSET)

logger = logging.getLogger("darkroom.tracing")


class TraceExport:
    """From the start of a process until `close`."""

    def __init__(self, tracing: Tracing, *, service: str, cluster: str) -> None:
        # It says every failed batch and every lost span; `_Collector` says once what there is to say.
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
        instance = f"{cluster or service}/{os.getpid()}"
        self._resource = Resource.create({"service.name": service, "service.instance.id": instance})
        self._collector = _Collector(tracing)
        self._processor = BatchSpanProcessor(self._collector, max_queue_size=_QUEUE, schedule_delay_millis=_DELAY_MS)

    def take(self, span: Span) -> None:
        """A span that has ended. Never waits."""
        _MADE.inc()
        # Made whole, when it is over: the SDK's own spans, which are written to under a lock, cost twice as much.
        self._processor.on_end(
            ReadableSpan(
                name=span.name,
                context=SpanContext(span.trace_id, span.span_id, is_remote=False, trace_flags=_SAMPLED),
                parent=SpanContext(span.trace_id, span.parent_id, is_remote=span.server, trace_flags=_SAMPLED)
                if span.parent_id
                else None,
                resource=self._resource,
                attributes=span.attributes,
                kind=SpanKind.SERVER if span.server else SpanKind.INTERNAL,
                status=_FAILED if span.failed else _UNSET,
                start_time=int(span.started * 1e9) + span.wall_ns,
                end_time=int(span.ended * 1e9) + span.wall_ns,
                instrumentation_scope=_SCOPE,
            )
        )

    def close(self) -> None:
        """Send what waits, if somebody takes it. Waits as long as one batch may take."""
        self._collector.end()
        self._processor.shutdown()  # type: ignore[no-untyped-call]


class _Collector(SpanExporter):
    """Sends batches, on the processor's thread, and says when that ceases to work and when it works again."""

    def __init__(self, tracing: Tracing) -> None:
        self._url = tracing.url
        self._exporter = OTLPSpanExporter(endpoint=tracing.url, timeout=_TIMEOUT_S)
        self._away = False
        self._ending = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        if self._ending and self._away:
            return self._lost(spans)
        if self._exporter.export(spans) is not SpanExportResult.SUCCESS:
            if not self._away:
                logger.warning("the collector takes no spans; they are lost", extra={"endpoint": self._url})
            self._away = True
            return self._lost(spans)
        if self._away:
            logger.info("the collector takes spans again", extra={"endpoint": self._url})
        self._away = False
        _SENT.inc(len(spans))
        return SpanExportResult.SUCCESS

    def end(self) -> None:
        """What waits is sent, unless the collector is away."""
        self._ending = True
        if self._away:
            self._exporter.shutdown()  # type: ignore[no-untyped-call]

    def shutdown(self) -> None:
        if not self._away:
            self._exporter.shutdown()  # type: ignore[no-untyped-call]

    def _lost(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        _LOST.inc(len(spans))
        return SpanExportResult.FAILURE
