"""Envoy's configuration as plain JSON: bootstrap, clusters, endpoints and routes. No I/O."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

Resource = dict[str, Any]

MAX_BODY_BYTES = 20 * 1024 * 1024
MAX_BATCH_BYTES = 64 * 1024 * 1024
"""Of a batch request's images, all together."""
REQUEST_TIMEOUT_S = 30
BODY_TIMEOUT_S = 14
"""For a body to arrive: who sends a byte now and then does not hold a place for long."""
STATISTICS = {"cds/cds.json": "cluster_manager.cds", "rds/rds.json": "rds.darkroom"}
"""Where Envoy counts what it took and refused of a kind of file."""

_TYPES = "type.googleapis.com/envoy"
_HTTP = f"{_TYPES}.extensions.filters.http"
_ROUTES_NAME = "darkroom"
_OIP_GRPC = "/inference.GRPCInferenceService/"
_UNBUFFERED = {"envoy.filters.http.buffer": {"@type": f"{_HTTP}.buffer.v3.BufferPerRoute", "disabled": True}}

MODEL_HEADER, VERSION_HEADER = "x-darkroom-model", "x-darkroom-version"
MODEL_OF_CALL = (Path(__file__).parent / "model_of_call.lua").read_text("utf-8")
"""A call by gRPC names its model in the message, and Envoy routes by headers."""

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


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """A serving process on 127.0.0.1."""

    port: int
    grpc_port: int


@dataclass(frozen=True, kw_only=True)
class Backend:
    """A deployment's share of its model's requests."""

    cluster: str
    version: str
    weight: int


def grpc_cluster(name: str) -> str:
    """The cluster of the same processes' gRPC ports."""
    return f"{name}-grpc"


def clusters(name: str, folder: Path) -> list[Resource]:
    """One deployment's processes, by HTTP and by gRPC."""
    return [_cluster(name, name, folder, {}), _cluster(grpc_cluster(name), name, folder, _HTTP2)]


_HTTP2 = {"http2_protocol_options": {"max_concurrent_streams": 256}}


def _cluster(name: str, vouched: str, folder: Path, protocol: Resource) -> Resource:
    """A process counts once its /readyz answers, on its HTTP port, and names the deployment's cluster."""
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
                "http_health_check": {"path": "/readyz", "service_name_matcher": {"exact": vouched}},
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
                "explicit_http_config": protocol or {"http_protocol_options": {}},
            }
        },
    }


def endpoints(cluster_name: str, processes: Sequence[Endpoint]) -> list[Resource]:
    """Of both clusters. gRPC ports are judged by what the process says on its HTTP port."""
    known = sorted(processes, key=lambda process: process.port)
    by_grpc = [
        {"address": _address(process.grpc_port), "health_check_config": {"port_value": process.port}}
        for process in known
    ]
    return [
        _assignment(cluster_name, [{"address": _address(process.port)} for process in known]),
        _assignment(grpc_cluster(cluster_name), by_grpc),
    ]


def _assignment(cluster_name: str, found: Sequence[Resource]) -> Resource:
    return {
        "@type": f"{_TYPES}.config.endpoint.v3.ClusterLoadAssignment",
        "cluster_name": cluster_name,
        "endpoints": [{"lb_endpoints": [{"endpoint": endpoint} for endpoint in found]}],
    }


def routes(models: Mapping[str, Sequence[Backend]], default_model: str) -> Resource:
    """Routes of every model, of the plain paths to the default one, and problems for everything else."""
    default = models.get(default_model, ())
    nothing = f"{default_model} is not deployed yet"
    too_long = f"the body is larger than {MAX_BODY_BYTES} bytes"
    served = [route for model, backends in sorted(models.items()) for route in _routes_of(model, backends)]
    known = ", ".join(sorted(models))
    return {
        "@type": f"{_TYPES}.config.route.v3.RouteConfiguration",
        "name": _ROUTES_NAME,
        "virtual_hosts": [
            {
                "name": "darkroom",
                "domains": ["*"],
                "routes": [
                    *_batch_routes(models, default),
                    _problem(_longer({"prefix": "/"}, MAX_BODY_BYTES), 413, too_long),
                    _index(sorted(models), default_model),
                    *served,
                    *_default_routes(default, nothing),
                    *(
                        _problem({"prefix": prefix}, 404, f"no such model; deployed: {known}")
                        if models
                        else _problem({"prefix": prefix}, 503, "nothing is deployed yet")
                        for prefix in ("/v1/models/", "/v2/models/")
                    ),
                    _problem({"prefix": "/"}, 404, "no such path; / lists what there is"),
                ],
            }
        ],
    }


def _routes_of(model: str, backends: Sequence[Backend]) -> list[Resource]:
    """Every path of one model."""
    base, oip = f"/v1/models/{model}", f"/v2/models/{model}"
    # A version by its name goes to its own processes, whatever their share of the requests without one.
    by_version = {
        version: [replace(backend, weight=1) for backend in backends if backend.version == version]
        for version in sorted({backend.version for backend in backends})
    }
    named = [
        route
        for version, own in by_version.items()
        for route in (
            _to_grpc(own, {"prefix": _OIP_GRPC}, model, version),
            _to(own, {"path_separated_prefix": f"{oip}/versions/{version}"}),
        )
    ]
    return [
        *named,
        _to_grpc(backends, {"prefix": _OIP_GRPC}, model),
        *(_to(backends, {"path": base + probe}, rewrite=probe) for probe in ("/livez", "/readyz", "/metrics")),
        _to_stream(backends, {"path": f"{base}/stream"}),
        _to(backends, {"path_separated_prefix": base}),
        _to(backends, {"path_separated_prefix": oip}),
    ]


def _batch_routes(models: Mapping[str, Sequence[Backend]], default: Sequence[Backend]) -> list[Resource]:
    """Many images in a request: they pass while they arrive, and are answered meanwhile."""
    paths = {f"/v1/models/{model}/classify/batch": backends for model, backends in sorted(models.items())}
    if default:
        paths["/v1/classify/batch"] = default
    found = []
    for path, backends in paths.items():
        too_long = f"the body is larger than {MAX_BATCH_BYTES} bytes; send several requests"
        found.append(_problem(_longer({"path": path}, MAX_BATCH_BYTES), 413, too_long))
        route = _to(backends, {"path": path})
        # What has been sent on cannot be sent again, and lines may come for minutes.
        del route["route"]["retry_policy"]
        route["route"]["timeout"] = "0s"
        route["typed_per_filter_config"] = _UNBUFFERED
        found.append(route)
    return found


def _default_routes(backends: Sequence[Backend], nothing: str) -> list[Resource]:
    """Paths that name no model. What a call by gRPC names and is not deployed is here too: any process says so."""
    calls = (_OIP_GRPC, "/grpc.health.v1.Health/", "/grpc.reflection.v1alpha.ServerReflection/")
    paths = (
        *("/v1/classify", "/v1/embed", "/v1/openapi.json", "/livez", "/readyz", "/metrics"),
        *("/v2", "/v2/health/live", "/v2/health/ready"),
    )
    if not backends:
        return [
            *(_problem({"prefix": call}, 503, nothing) for call in calls),
            *(_problem({"path": path}, 503, nothing) for path in (*paths, "/v1/classify/batch", "/v1/stream")),
        ]
    return [
        *(_to_grpc(backends, {"prefix": call}) for call in calls),
        _to_stream(backends, {"path": "/v1/stream"}),
        *(_to(backends, {"path": path}) for path in paths),
    ]


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
                "@type": f"{_TYPES}.extensions.request_id.uuid.v3.UuidRequestIdConfig",
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


def _to(
    backends: Sequence[Backend], match: Resource, rewrite: str | None = None, name_of: Callable[[str], str] = str
) -> Resource:
    action: Resource = {
        "weighted_clusters": {
            "clusters": [
                {"name": name_of(backend.cluster), "weight": backend.weight}
                for backend in sorted(backends, key=lambda backend: backend.cluster)
            ]
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


def _to_grpc(backends: Sequence[Backend], match: Resource, model: str = "", version: str = "") -> Resource:
    """Calls by gRPC, of one model or version where given: the filter `model_of_call` has put them into headers."""
    named = {MODEL_HEADER: model, VERSION_HEADER: version}
    headers = [{"name": name, "string_match": {"exact": value}} for name, value in named.items() if value]
    found = _to(backends, {**match, "grpc": {}, **({"headers": headers} if headers else {})}, name_of=grpc_cluster)
    if match["prefix"] != _OIP_GRPC:  # streams, that last
        found["route"]["timeout"] = "0s"
        found["typed_per_filter_config"] = _UNBUFFERED
    return found


def _to_stream(backends: Sequence[Backend], match: Resource) -> Resource:
    """WebSockets: nothing is waited for, nothing tried again."""
    found = _to(backends, {**match, "headers": [{"name": "upgrade", "string_match": {"exact": "websocket"}}]})
    del found["route"]["retry_policy"]
    found["route"] |= {"timeout": "0s", "upgrade_configs": [{"upgrade_type": "websocket", "enabled": True}]}
    found["typed_per_filter_config"] = _UNBUFFERED
    return found


def _problem(match: Resource, status: int, detail: str) -> Resource:
    return {
        "match": match,
        "direct_response": {"status": status, "body": {"inline_string": detail}},
        # Answered from the headers: the buffer filter would wait for the body first.
        "typed_per_filter_config": _UNBUFFERED,
    }


def _longer(match: Resource, max_bytes: int) -> Resource:
    """Requests with a larger body: refused by their header, before a byte is read."""
    beyond = {"start": str(max_bytes + 1), "end": str(2**63 - 1)}
    return {**match, "headers": [{"name": "content-length", "range_match": beyond}]}


def _index(models: Sequence[str], default_model: str) -> Resource:
    index = {
        "service": "darkroom",
        "models": {model: f"/v1/models/{model}/classify" for model in models},
        "default_model": default_model if default_model in models else None,
        "classify": "POST the bytes of one image to /v1/models/{name}/classify or /v1/classify",
        "classify_batch": "POST a form's files, or a tar, to /v1/models/{name}/classify/batch; JSON lines come back",
        "embed": "POST the bytes of one image to /v1/models/{name}/embed or /v1/embed",
        "stream": "WebSocket /v1/models/{name}/stream or /v1/stream: an image a frame, a JSON text back",
        "openapi": "/v1/models/{name}/openapi.json or /v1/openapi.json",
        "open_inference_protocol": "/v2 by REST, inference.GRPCInferenceService by gRPC, both on this port",
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
