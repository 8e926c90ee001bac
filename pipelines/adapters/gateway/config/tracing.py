"""Spans of the gateway's own, and the decision which requests are traced at all."""

from __future__ import annotations

from pipelines.adapters.gateway.config.parts import TYPES, Resource, address
from pipelines.core.traces import Tracing

SERVICE = "darkroom-gateway"
COLLECTOR = "otlp-collector"
"""No deployment's cluster: theirs end with a version and a number."""

RUNTIME = {"opentelemetry": {"flush_interval_ms": 1000, "min_flush_spans": 256}}
"""Below `tracing`: spans are sent every second, or 256 at once; the defaults are 5 s and 5."""


def tracer(tracing: Tracing) -> Resource:
    """Of a connection manager. A client that comes with a trace has decided; of the others a share is drawn.

    Every request goes on with a `traceparent`, so that a process need not decide again.
    """
    return {
        "custom_tags": [
            # The same name as in a process's spans.
            {"tag": "darkroom.request_id", "request_header": {"name": "x-request-id"}},
            # Instead of the whole URL: people do put keys into queries.
            {"tag": "http.url", "value": "%PATH(NQ)%"},
        ],
        "provider": {
            "name": "envoy.tracers.opentelemetry",
            "typed_config": {
                "@type": f"{TYPES}.config.trace.v3.OpenTelemetryConfig",
                "http_service": {"http_uri": {"uri": tracing.url, "cluster": COLLECTOR, "timeout": "5s"}},
                "service_name": SERVICE,
                "sampler": _sampler(tracing.sample),
            },
        },
    }


def _sampler(share: float) -> Resource:
    """Envoy's own way to decide, by the request id, would leave it to clients, whose ids we keep."""
    samplers = "envoy.tracers.opentelemetry.samplers"
    types = f"{TYPES}.extensions.tracers.opentelemetry.samplers.v3"
    percentage = {"numerator": round(share * 1_000_000), "denominator": "MILLION"}
    drawn = {"@type": f"{types}.TraceIdRatioBasedSamplerConfig", "sampling_percentage": percentage}
    return {
        "name": f"{samplers}.parent_based",
        "typed_config": {
            "@type": f"{types}.ParentBasedSamplerConfig",
            "wrapped_sampler": {"name": f"{samplers}.trace_id_ratio_based", "typed_config": drawn},
        },
    }


def collector(tracing: Tracing) -> Resource:
    """The cluster where spans go. What it does not take is lost, and no request waits for it."""
    at = address(tracing.port, tracing.host)
    return {
        "name": COLLECTOR,
        "type": "STRICT_DNS",
        "connect_timeout": "1s",
        "load_assignment": {
            "cluster_name": COLLECTOR,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": at}}]}],
        },
    }
