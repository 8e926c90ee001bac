"""Envoy's configuration as plain JSON: bootstrap, clusters, endpoints and routes. No I/O."""

from pipelines.adapters.gateway.config.bootstrap import bootstrap
from pipelines.adapters.gateway.config.clusters import (
    SIMILAR,
    Endpoint,
    clusters,
    endpoints,
    grpc_cluster,
    health_cluster,
    similar_cluster,
    similar_endpoint,
)
from pipelines.adapters.gateway.config.listener import CERTIFICATE_FILE, Listening, certificate
from pipelines.adapters.gateway.config.routes import Backend, routes
from pipelines.adapters.gateway.config.tracing import COLLECTOR

STATISTICS = {"cds/cds.json": "cluster_manager.cds", "rds/rds.json": "rds.darkroom"}
"""Where Envoy counts what it took and refused of a kind of file."""

__all__ = [
    "CERTIFICATE_FILE",
    "COLLECTOR",
    "SIMILAR",
    "STATISTICS",
    "Backend",
    "Endpoint",
    "Listening",
    "bootstrap",
    "certificate",
    "clusters",
    "endpoints",
    "grpc_cluster",
    "health_cluster",
    "routes",
    "similar_cluster",
    "similar_endpoint",
]
