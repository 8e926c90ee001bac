"""Deployments, and the search for similar images, as clusters: which processes there are, and which of them count."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipelines.adapters.gateway.config.parts import BUFFER_BYTES, TYPES, Resource, address, watched

SIMILAR = "similar"
"""Cluster of the process that finds similar images. No deployment's: theirs end with a version and a number."""

MAX_HEALTH_CALLS = 1000
"""Of a deployment at once. Anybody may watch its health without a key, on as many streams as he likes, and in the
models' cluster would leave no place to calls that classify. A process takes 100 that watch (bentos.classifier.oip)."""


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """A serving process on 127.0.0.1."""

    port: int
    grpc_port: int


def grpc_cluster(name: str) -> str:
    """The cluster of the same processes' gRPC ports."""
    return f"{name}-grpc"


def health_cluster(name: str) -> str:
    """The cluster of the same ports for calls that last: health and reflection."""
    return f"{name}-health"


def clusters(name: str, folder: Path) -> list[Resource]:
    """One deployment's processes, by HTTP and by gRPC; those who watch them apart."""
    return [
        _cluster(name, name, folder, {}),
        _cluster(grpc_cluster(name), name, folder, _HTTP2),
        _cluster(health_cluster(name), name, folder, _HTTP2, MAX_HEALTH_CALLS),
    ]


def similar_cluster(folder: Path) -> Resource:
    """The process that finds similar images speaks HTTP only."""
    return _cluster(SIMILAR, SIMILAR, folder, {})


def similar_endpoint(port: int) -> Resource:
    return _assignment(SIMILAR, [{"address": address(port)}])


_MAX_REQUESTS = 10_000
"""As many as there can be connections of clients: bodies that drip must not shut others out. What a process cannot do
in time it refuses itself."""
_HTTP2 = {"http2_protocol_options": {"max_concurrent_streams": 256}}


def _cluster(name: str, vouched: str, folder: Path, protocol: Resource, max_requests: int = _MAX_REQUESTS) -> Resource:
    """A process counts once its /readyz answers, on its HTTP port, and names the deployment's cluster."""
    return {
        "@type": f"{TYPES}.config.cluster.v3.Cluster",
        "name": name,
        "type": "EDS",
        "eds_cluster_config": {"eds_config": watched(folder, f"eds/{name}.json")},
        "connect_timeout": "1s",
        "per_connection_buffer_limit_bytes": BUFFER_BYTES,
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
                    "max_connections": _MAX_REQUESTS,
                    "max_requests": max_requests,
                    "max_pending_requests": 1024,
                    "retry_budget": {"budget_percent": {"value": 50}, "min_retry_concurrency": 16},
                }
            ]
        },
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": f"{TYPES}.extensions.upstreams.http.v3.HttpProtocolOptions",
                # Shorter than the worker's keep-alive (bentos.kit.worker), or a request could meet its closing.
                "common_http_protocol_options": {"idle_timeout": "20s"},
                "explicit_http_config": protocol or {"http_protocol_options": {}},
            }
        },
    }


def endpoints(cluster_name: str, processes: Sequence[Endpoint]) -> list[Resource]:
    """Of all its clusters. gRPC ports are judged by what the process says on its HTTP port."""
    known = sorted(processes, key=lambda process: process.port)
    by_grpc = [
        {"address": address(process.grpc_port), "health_check_config": {"port_value": process.port}}
        for process in known
    ]
    return [
        _assignment(cluster_name, [{"address": address(process.port)} for process in known]),
        _assignment(grpc_cluster(cluster_name), by_grpc),
        _assignment(health_cluster(cluster_name), by_grpc),
    ]


def _assignment(cluster_name: str, found: Sequence[Resource]) -> Resource:
    return {
        "@type": f"{TYPES}.config.endpoint.v3.ClusterLoadAssignment",
        "cluster_name": cluster_name,
        "endpoints": [{"lb_endpoints": [{"endpoint": endpoint} for endpoint in found]}],
    }
