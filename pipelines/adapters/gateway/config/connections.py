"""What holds for every connection: protocols, limits, filters, Envoy's own answers, access log."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipelines.adapters.gateway.config.parts import (
    HTTP_FILTERS,
    REQUEST_TIMEOUT_S,
    ROUTES_NAME,
    TYPES,
    Resource,
    watched,
)
from pipelines.adapters.gateway.config.tracing import tracer
from pipelines.core.limits import BODY_TIMEOUT_S
from pipelines.core.traces import Tracing

MODEL_OF_CALL = "".join(
    (Path(__file__).parent / name).read_text("utf-8") for name in ("inflate.lua", "model_of_call.lua")
)
"""A call by gRPC names its model in the message, and Envoy routes by headers: this makes the headers."""

SMALL_BODY_BYTES = 2_000_000
"""Bodies below this that say so are collected before a process sees them."""

_HTTP2 = {
    "max_concurrent_streams": 100,
    # What a stream may send before it is read from, and all streams of a connection together.
    "initial_stream_window_size": 256 * 1024,
    "initial_connection_window_size": 1024**2,
    # Floods of frames that cost the sender nothing; Envoy's defaults, but for the first two, which are for proxies
    # that answer in more and longer streams than we do.
    "max_outbound_frames": 2000,
    "max_outbound_control_frames": 200,
    "max_consecutive_inbound_frames_with_empty_payload": 1,
    "max_inbound_priority_frames_per_stream": 100,
    "max_inbound_window_update_frames_per_data_frame_sent": 10,
    # One bad message ends its stream, not the others of the connection.
    "override_stream_error_on_invalid_http_message": True,
}

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


def connection_manager(folder: Path, access_log: Path, tracing: Tracing | None) -> Resource:
    """The filter that makes requests of a connection's bytes."""
    manager = {
        "@type": f"{TYPES}.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "gateway",
        "codec_type": "AUTO",
        "server_name": "darkroom",
        "rds": {"route_config_name": ROUTES_NAME, "config_source": watched(folder, "rds/rds.json")},
        # Small bodies are collected, so that no process sees one that drips and a killed one's are sent again. All
        # others pass as they arrive, and their client is read from no faster than a process reads.
        "http_filters": [
            _collected_bodies(),
            _filter("lua", "lua.v3.Lua", default_source_code={"inline_string": MODEL_OF_CALL}),
            # How long a process took, and how often it was tried, is for the access log.
            _filter("router", "router.v3.Router", suppress_envoy_headers=True),
        ],
        # Routes to streams allow it.
        "upgrade_configs": [{"upgrade_type": "websocket", "enabled": False}],
        **_PATHS_AND_IDS,
        **_LIMITS,
        "local_reply_config": {"mappers": [*(_mapper(status, "EQ") for status in _TITLES), _mapper(400, "GE")]},
        "access_log": [_access_log(access_log)],
    }
    if tracing is not None:
        manager["tracing"] = tracer(tracing)
    return {"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}


_PATHS_AND_IDS = {
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
            # The tracer decides (config.tracing).
            "use_request_id_for_trace_sampling": False,
        }
    },
}

_LIMITS = {
    "max_request_headers_kb": 32,
    "request_headers_timeout": "6s",
    # Until the answer begins: a batch's does with its first image, a stream's at once.
    "request_timeout": f"{BODY_TIMEOUT_S}s",
    # Nothing in either direction. A stream that lives answers pings in less.
    "stream_idle_timeout": f"{2 * REQUEST_TIMEOUT_S}s",
    "common_http_protocol_options": {
        "idle_timeout": "300s",
        "max_headers_count": 100,
        # A process could take x_request_id for x-request-id; gRPC's clients do send such names.
        "headers_with_underscores_action": "DROP_HEADER",
    },
    "http2_protocol_options": _HTTP2,
}


def _collected_bodies() -> Resource:
    """The buffer filter, passed over unless a body says that it is small. Batches are answered while they arrive."""
    # A query may hold anything, and so may a path that nobody serves.
    small, batch = "1?[0-9]{1,6}", r"/v1/(models/[^/?]+/)?classify/batch(\?.*)?"
    others = {
        "or_matcher": {
            "predicate": [
                {"not_matcher": {"single_predicate": _header("content-length", small)}},
                {"single_predicate": _header(":path", batch)},
            ]
        }
    }
    skip = {"@type": f"{TYPES}.extensions.filters.common.matcher.action.v3.SkipFilter"}
    passed_over = {"predicate": others, "on_match": {"action": {"name": "skip", "typed_config": skip}}}
    return {
        "name": "small-bodies",
        "typed_config": {
            "@type": f"{TYPES}.extensions.common.matching.v3.ExtensionWithMatcher",
            "extension_config": _filter("buffer", "buffer.v3.Buffer", max_request_bytes=SMALL_BODY_BYTES),
            "xds_matcher": {"matcher_list": {"matchers": [passed_over]}},
        },
    }


def _header(name: str, pattern: str) -> Resource:
    return {
        "input": {
            "name": name,
            "typed_config": {"@type": f"{TYPES}.type.matcher.v3.HttpRequestHeaderMatchInput", "header_name": name},
        },
        "value_match": {"safe_regex": {"google_re2": {}, "regex": pattern}},
    }


def _filter(name: str, kind: str, **options: Any) -> Resource:
    return {"name": f"envoy.filters.http.{name}", "typed_config": {"@type": f"{HTTP_FILTERS}.{kind}", **options}}


def _mapper(status: int, comparison: str) -> Resource:
    """Envoy's own replies as RFC 9457 problems; its plain text breaks clients that parse JSON."""
    found: Resource = {
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
    if status == 503:
        found["headers_to_add"] = [{"header": {"key": "retry-after", "value": "1"}}]
    return found


def _access_log(path: Path) -> Resource:
    fields = {
        "at": "%START_TIME%",
        "request_id": "%REQ(X-REQUEST-ID)%",
        "trace_id": "%TRACE_ID%",
        "client": "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%",
        "protocol": "%PROTOCOL%",
        "tls": "%DOWNSTREAM_TLS_VERSION%",
        "method": "%REQ(:METHOD)%",
        # Without the query, as in traces: people do put keys there.
        "path": "%PATH(NQ)%",
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
