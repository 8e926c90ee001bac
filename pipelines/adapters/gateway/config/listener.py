"""The static part: admin interface, listener, filters, limits, access log."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipelines.adapters.gateway.config.parts import (
    BODY_TIMEOUT_S,
    HTTP_FILTERS,
    REQUEST_TIMEOUT_S,
    ROUTES_NAME,
    TYPES,
    Resource,
    address,
    watched,
)
from pipelines.core.limits import MAX_BODY_BYTES

MODEL_OF_CALL = (Path(__file__).parent / "model_of_call.lua").read_text("utf-8")
"""A call by gRPC names its model in the message, and Envoy routes by headers: this makes the headers."""

_TITLES = {
    400: "Bad request",
    404: "Not found",
    408: "Request timeout",
    413: "Body too large",
    429: "Too many requests",
    431: "Headers too large",
    500: "Internal error",
    502: "Bad gateway",
    503: "Not available",
    504: "Gateway timeout",
}


def bootstrap(*, folder: Path, port: int, admin_port: int, access_log: Path) -> Resource:
    """The static part: admin interface, listener, where the dynamic parts come from, and what bounds memory."""
    return {
        "node": {"id": "darkroom", "cluster": "darkroom"},
        "admin": {"address": address(admin_port)},
        "dynamic_resources": {"cds_config": watched(folder, "cds/cds.json")},
        "static_resources": {"listeners": [_listener(folder, port, access_log)]},
        # Off by default: a health check passes only where the process names the cluster that it is part of.
        "layered_runtime": {"layers": [{"name": "static", "static_layer": {"health_check": {"verify_cluster": 100}}}]},
        "overload_manager": {
            "refresh_interval": "0.25s",
            "resource_monitors": [
                {
                    "name": "envoy.resource_monitors.fixed_heap",
                    "typed_config": {
                        "@type": f"{TYPES}.extensions.resource_monitors.fixed_heap.v3.FixedHeapConfig",
                        "max_heap_size_bytes": str(1024**3),
                    },
                },
                {
                    "name": "envoy.resource_monitors.global_downstream_max_connections",
                    "typed_config": {
                        "@type": f"{TYPES}.extensions.resource_monitors.downstream_connections.v3"
                        ".DownstreamConnectionsConfig",
                        "max_active_downstream_connections": "10000",
                    },
                },
            ],
            "actions": [
                _overload("envoy.overload_actions.shrink_heap", 0.9),
                _overload("envoy.overload_actions.stop_accepting_requests", 0.95),
            ],
        },
    }


def _overload(name: str, share: float) -> Resource:
    return {
        "name": name,
        "triggers": [{"name": "envoy.resource_monitors.fixed_heap", "threshold": {"value": share}}],
    }


def _listener(folder: Path, port: int, access_log: Path) -> Resource:
    manager = {
        "@type": f"{TYPES}.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "gateway",
        "codec_type": "AUTO",
        "server_name": "darkroom",
        "rds": {"route_config_name": ROUTES_NAME, "config_source": watched(folder, "rds/rds.json")},
        "http_filters": [
            _filter("buffer", "buffer.v3.Buffer", max_request_bytes=MAX_BODY_BYTES),
            _filter("lua", "lua.v3.Lua", default_source_code={"inline_string": MODEL_OF_CALL}),
            _filter("router", "router.v3.Router"),
        ],
        # Routes to streams allow it.
        "upgrade_configs": [{"upgrade_type": "websocket", "enabled": False}],
        "use_remote_address": True,
        "normalize_path": True,
        "merge_slashes": True,
        "path_with_escaped_slashes_action": "REJECT_REQUEST",
        # A client's request id is kept as it came, and every answer carries one.
        "preserve_external_request_id": True,
        "always_set_request_id_in_response": True,
        "request_id_extension": {
            "typed_config": {
                "@type": f"{TYPES}.extensions.request_id.uuid.v3.UuidRequestIdConfig",
                "pack_trace_reason": False,
            }
        },
        "request_headers_timeout": "6s",
        # Until the answer begins: a batch's does with its first image, a stream's at once.
        "request_timeout": f"{BODY_TIMEOUT_S}s",
        "stream_idle_timeout": f"{2 * REQUEST_TIMEOUT_S}s",
        "common_http_protocol_options": {"idle_timeout": "300s"},
        "http2_protocol_options": {"max_concurrent_streams": 100},
        "local_reply_config": {"mappers": [*(_mapper(status, "EQ") for status in _TITLES), _mapper(400, "GE")]},
        "access_log": [_access_log(access_log)],
    }
    return {
        "name": "gateway",
        "address": address(port),
        "per_connection_buffer_limit_bytes": 1024**2,
        "filter_chains": [
            {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}
        ],
    }


def _filter(name: str, kind: str, **options: Any) -> Resource:
    return {"name": f"envoy.filters.http.{name}", "typed_config": {"@type": f"{HTTP_FILTERS}.{kind}", **options}}


def _mapper(status: int, comparison: str) -> Resource:
    """Envoy's own replies as RFC 9457 problems; its plain text breaks clients that parse JSON."""
    return {
        "filter": {
            "status_code_filter": {
                "comparison": {"op": comparison, "value": {"default_value": status, "runtime_key": "unused"}}
            }
        },
        "body_format_override": {
            "json_format": {
                "type": "about:blank",
                "title": _TITLES[status] if comparison == "EQ" else "Refused",
                "status": "%RESPONSE_CODE%",
                "detail": "%LOCAL_REPLY_BODY%",
                "reason": "gateway",
                "request_id": "%REQ(X-REQUEST-ID)%",
            },
            "content_type": "application/problem+json",
        },
    }


def _access_log(path: Path) -> Resource:
    fields = {
        "at": "%START_TIME%",
        "request_id": "%REQ(X-REQUEST-ID)%",
        "client": "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%",
        "protocol": "%PROTOCOL%",
        "method": "%REQ(:METHOD)%",
        "path": "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%",
        "status": "%RESPONSE_CODE%",
        "details": "%RESPONSE_CODE_DETAILS%",
        "flags": "%RESPONSE_FLAGS%",
        "received_bytes": "%BYTES_RECEIVED%",
        "sent_bytes": "%BYTES_SENT%",
        "duration_ms": "%DURATION%",
        "cluster": "%UPSTREAM_CLUSTER%",
        "upstream": "%UPSTREAM_HOST%",
    }
    return {
        "name": "envoy.access_loggers.file",
        "typed_config": {
            "@type": f"{TYPES}.extensions.access_loggers.file.v3.FileAccessLog",
            "path": str(path),
            "log_format": {"json_format": fields},
        },
    }
