"""The static part: admin interface, listeners, where the dynamic parts come from, and what bounds memory."""

from __future__ import annotations

from pathlib import Path

from pipelines.adapters.gateway.config import tracing
from pipelines.adapters.gateway.config.listener import Listening, listeners
from pipelines.adapters.gateway.config.parts import TYPES, Resource, address, watched

_HEAP_BYTES = 512 * 1024**2
"""Of Envoy; at rest it has 70 MB."""
_TRACKED_BYTES_LOG2 = 18
"""Streams that hold 256 KiB or more are the first to go when memory runs short."""
_MAX_CONNECTIONS = 10_000
_HEAP, _CONNECTIONS = "envoy.resource_monitors.fixed_heap", "envoy.resource_monitors.global_downstream_max_connections"

_RUNTIME = {
    # Off by default: a health check passes only where the process names the cluster that it is part of.
    "health_check": {"verify_cluster": 100},
    # A connection that opens and resets streams by the hundred takes its turn behind the others (CVE-2023-44487).
    "http": {"max_requests_per_io_cycle": 1},
    "tracing": tracing.RUNTIME,
}


def bootstrap(*, folder: Path, listening: Listening, admin_port: int, access_log: Path) -> Resource:
    """What Envoy starts with."""
    return {
        "node": {"id": "darkroom", "cluster": "darkroom"},
        # Rollouts go on while clients hold every connection.
        "admin": {"address": address(admin_port), "ignore_global_conn_limit": True},
        "dynamic_resources": {"cds_config": watched(folder, "cds/cds.json")},
        "static_resources": {
            "listeners": listeners(folder, listening, access_log),
            **({"clusters": [tracing.collector(listening.tracing)]} if listening.tracing else {}),
        },
        "layered_runtime": {"layers": [{"name": "static", "static_layer": _RUNTIME}]},
        "overload_manager": _overload_manager(),
    }


def _overload_manager() -> Resource:
    monitors = f"{TYPES}.extensions.resource_monitors"
    return {
        # On one machine a hundred clients send 200 MB in a quarter of a second.
        "refresh_interval": "0.05s",
        "buffer_factory_config": {"minimum_account_to_track_power_of_two": _TRACKED_BYTES_LOG2},
        "resource_monitors": [
            {
                "name": _HEAP,
                "typed_config": {
                    "@type": f"{monitors}.fixed_heap.v3.FixedHeapConfig",
                    "max_heap_size_bytes": str(_HEAP_BYTES),
                },
            },
            {
                "name": _CONNECTIONS,
                "typed_config": {
                    "@type": f"{monitors}.downstream_connections.v3.DownstreamConnectionsConfig",
                    "max_active_downstream_connections": str(_MAX_CONNECTIONS),
                },
            },
        ],
        "actions": [
            # Who holds most is ended first, and more of them the less is left; then nothing new is taken.
            _action("reset_high_memory_stream", {"scaled": {"scaling_threshold": 0.6, "saturation_threshold": 0.9}}),
            _action("shrink_heap", {"threshold": {"value": 0.8}}),
            _action("disable_http_keepalive", {"threshold": {"value": 0.9}}),
            _action("stop_accepting_requests", {"threshold": {"value": 0.95}}),
            _action("stop_accepting_connections", {"threshold": {"value": 0.98}}),
        ],
    }


def _action(name: str, when: Resource) -> Resource:
    return {"name": f"envoy.overload_actions.{name}", "triggers": [{"name": _HEAP, **when}]}
