"""Envoy's configuration as plain JSON: bootstrap, clusters, endpoints and routes. No I/O."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Resource = dict[str, Any]

MAX_BODY_BYTES = 20 * 1024 * 1024
REQUEST_TIMEOUT_S = 30
STATISTICS = {"cds/cds.json": "cluster_manager.cds", "rds/rds.json": "rds.darkroom"}
"""Where Envoy counts what it took and refused of a kind of file."""

_TYPES = "type.googleapis.com/envoy"
_HTTP = f"{_TYPES}.extensions.filters.http"
_ROUTES_NAME = "darkroom"

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
        "admin": {"address": _address(admin_port)},
        "dynamic_resources": {"cds_config": _watched(folder, "cds/cds.json")},
        "static_resources": {"listeners": [_listener(folder, port, access_log)]},
        # Off by default: a health check passes only where the process names the cluster that it is part of.
        "layered_runtime": {"layers": [{"name": "static", "static_layer": {"health_check": {"verify_cluster": 100}}}]},
        "overload_manager": {
            "refresh_interval": "0.25s",
            "resource_monitors": [
                {
                    "name": "envoy.resource_monitors.fixed_heap",
                    "typed_config": {
                        "@type": f"{_TYPES}.extensions.resource_monitors.fixed_heap.v3.FixedHeapConfig",
                        "max_heap_size_bytes": str(1024**3),
                    },
                },
                {
                    "name": "envoy.resource_monitors.global_downstream_max_connections",
                    "typed_config": {
                        "@type": f"{_TYPES}.extensions.resource_monitors.downstream_connections.v3"
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


def cluster(name: str, folder: Path) -> Resource:
    """One deployment's processes. A process counts once its /readyz answers and names this cluster."""
    return {
        "@type": f"{_TYPES}.config.cluster.v3.Cluster",
        "name": name,
        "type": "EDS",
        "eds_cluster_config": {"eds_config": _watched(folder, f"eds/{name}.json")},
        "connect_timeout": "1s",
        "lb_policy": "LEAST_REQUEST",
        "common_lb_config": {"healthy_panic_threshold": {"value": 0}},
        "ignore_health_on_host_removal": True,
        # A dead process is found by its refused connection; the check is slow to condemn: load alone never does.
        "health_checks": [
            {
                "timeout": "3s",
                "interval": "0.5s",
                "no_traffic_interval": "0.5s",
                "unhealthy_threshold": 3,
                "healthy_threshold": 1,
                "http_health_check": {"path": "/readyz", "service_name_matcher": {"exact": name}},
            }
        ],
        "circuit_breakers": {
            "thresholds": [
                {
                    "max_requests": 1024,
                    "max_pending_requests": 1024,
                    "retry_budget": {"budget_percent": {"value": 50}, "min_retry_concurrency": 16},
                }
            ]
        },
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": f"{_TYPES}.extensions.upstreams.http.v3.HttpProtocolOptions",
                # Shorter than the worker's keep-alive (bentos.kit.worker), or a request could meet its closing.
                "common_http_protocol_options": {"idle_timeout": "20s"},
                "explicit_http_config": {"http_protocol_options": {}},
            }
        },
    }


def endpoints(cluster_name: str, ports: Sequence[int]) -> Resource:
    return {
        "@type": f"{_TYPES}.config.endpoint.v3.ClusterLoadAssignment",
        "cluster_name": cluster_name,
        "endpoints": [{"lb_endpoints": [{"endpoint": {"address": _address(port)}} for port in sorted(ports)]}],
    }


def routes(weights: Mapping[str, Mapping[str, int]], default_model: str) -> Resource:
    """Routes of every model, of the plain paths to the default one, and problems for everything else."""
    served: list[Resource] = []
    for model, clusters in sorted(weights.items()):
        base = f"/v1/models/{model}"
        served += [_to(clusters, {"path": base + probe}, rewrite=probe) for probe in ("/livez", "/readyz", "/metrics")]
        served.append(_to(clusters, {"path_separated_prefix": base}))
    plain = ("/v1/classify", "/livez", "/readyz", "/metrics")
    if default_model in weights:
        served += [_to(weights[default_model], {"path": path}) for path in plain]
    else:
        served += [_problem({"path": path}, 503, f"{default_model} is not deployed yet") for path in plain]
    known = ", ".join(sorted(weights))
    return {
        "@type": f"{_TYPES}.config.route.v3.RouteConfiguration",
        "name": _ROUTES_NAME,
        "virtual_hosts": [
            {
                "name": "darkroom",
                "domains": ["*"],
                "routes": [
                    _problem(_too_large(), 413, f"the body is larger than {MAX_BODY_BYTES} bytes"),
                    _index(sorted(weights), default_model),
                    *served,
                    _problem({"prefix": "/v1/models/"}, 404, f"no such model; deployed: {known}")
                    if weights
                    else _problem({"prefix": "/v1/models/"}, 503, "nothing is deployed yet"),
                    _problem({"prefix": "/"}, 404, "no such path; / lists what there is"),
                ],
            }
        ],
    }


# --- parts ---------------------------------------------------------------------------------------------------------


def _address(port: int) -> Resource:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def _watched(folder: Path, name: str) -> Resource:
    return {
        "resource_api_version": "V3",
        "path_config_source": {
            "path": str(folder / name),
            "watched_directory": {"path": str((folder / name).parent)},
        },
    }


def _overload(name: str, share: float) -> Resource:
    return {
        "name": name,
        "triggers": [{"name": "envoy.resource_monitors.fixed_heap", "threshold": {"value": share}}],
    }


def _listener(folder: Path, port: int, access_log: Path) -> Resource:
    manager = {
        "@type": f"{_TYPES}.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "gateway",
        "codec_type": "AUTO",
        "server_name": "darkroom",
        "rds": {"route_config_name": _ROUTES_NAME, "config_source": _watched(folder, "rds/rds.json")},
        "http_filters": [
            _filter("buffer", "buffer.v3.Buffer", max_request_bytes=MAX_BODY_BYTES),
            _filter("router", "router.v3.Router"),
        ],
        "use_remote_address": True,
        "normalize_path": True,
        "merge_slashes": True,
        "path_with_escaped_slashes_action": "REJECT_REQUEST",
        # A client's request id is kept as it came, and every answer carries one.
        "preserve_external_request_id": True,
        "always_set_request_id_in_response": True,
        "request_id_extension": {
            "typed_config": {
                "@type": f"{_TYPES}.extensions.request_id.uuid.v3.UuidRequestIdConfig",
                "pack_trace_reason": False,
            }
        },
        "request_headers_timeout": "6s",
        "request_timeout": f"{2 * REQUEST_TIMEOUT_S}s",
        "stream_idle_timeout": f"{2 * REQUEST_TIMEOUT_S}s",
        "common_http_protocol_options": {"idle_timeout": "300s"},
        "http2_protocol_options": {"max_concurrent_streams": 100},
        "local_reply_config": {"mappers": [*(_mapper(status, "EQ") for status in _TITLES), _mapper(400, "GE")]},
        "access_log": [_access_log(access_log)],
    }
    return {
        "name": "gateway",
        "address": _address(port),
        "per_connection_buffer_limit_bytes": 1024**2,
        "filter_chains": [
            {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}
        ],
    }


def _filter(name: str, kind: str, **options: Any) -> Resource:
    return {"name": f"envoy.filters.http.{name}", "typed_config": {"@type": f"{_HTTP}.{kind}", **options}}


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
            "@type": f"{_TYPES}.extensions.access_loggers.file.v3.FileAccessLog",
            "path": str(path),
            "log_format": {"json_format": fields},
        },
    }


def _to(clusters: Mapping[str, int], match: Resource, rewrite: str | None = None) -> Resource:
    action: Resource = {
        "weighted_clusters": {
            "clusters": [{"name": name, "weight": weight} for name, weight in sorted(clusters.items())]
        },
        "timeout": f"{REQUEST_TIMEOUT_S}s",
        # To classify is to read: doing it again on another process harms nobody.
        "retry_policy": {
            "retry_on": "connect-failure,refused-stream,reset",
            "num_retries": 3,
            "retry_host_predicate": [
                {
                    "name": "envoy.retry_host_predicates.previous_hosts",
                    "typed_config": {
                        "@type": f"{_TYPES}.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"
                    },
                }
            ],
            "host_selection_retry_max_attempts": "3",
            "retry_back_off": {"base_interval": "0.05s", "max_interval": "0.5s"},
        },
    }
    if rewrite is not None:
        action["prefix_rewrite"] = rewrite
    return {"match": match, "route": action}


def _problem(match: Resource, status: int, detail: str) -> Resource:
    return {
        "match": match,
        "direct_response": {"status": status, "body": {"inline_string": detail}},
        # Answered from the headers: the buffer filter would wait for the body first.
        "typed_per_filter_config": {
            "envoy.filters.http.buffer": {"@type": f"{_HTTP}.buffer.v3.BufferPerRoute", "disabled": True}
        },
    }


def _too_large() -> Resource:
    # Refused by its header, before a byte is read.
    beyond = {"start": str(MAX_BODY_BYTES + 1), "end": str(2**63 - 1)}
    return {"prefix": "/", "headers": [{"name": "content-length", "range_match": beyond}]}


def _index(models: Sequence[str], default_model: str) -> Resource:
    index = {
        "service": "darkroom",
        "models": {model: f"/v1/models/{model}/classify" for model in models},
        "default_model": default_model if default_model in models else None,
        "classify": "POST the bytes of one image to /v1/models/{name}/classify or /v1/classify",
    }
    return {
        "match": {"path": "/"},
        "direct_response": {"status": 200, "body": {"inline_string": json.dumps(index)}},
        "response_headers_to_add": [
            {
                "header": {"key": "content-type", "value": "application/json"},
                "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
            }
        ],
    }
