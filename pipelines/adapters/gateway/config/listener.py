"""Where Envoy listens: plain HTTP for this machine, TLS for it or for others."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipelines.adapters.gateway.config.connections import connection_manager
from pipelines.adapters.gateway.config.parts import BUFFER_BYTES, TYPES, Resource, address, watched
from pipelines.core.traces import Tracing

CERTIFICATE_NAME = "gateway"
CERTIFICATE_FILE = "sds/certificate.json"

_CIPHERS = (
    *("ECDHE-ECDSA-AES128-GCM-SHA256", "ECDHE-RSA-AES128-GCM-SHA256"),
    *("ECDHE-ECDSA-AES256-GCM-SHA384", "ECDHE-RSA-AES256-GCM-SHA384"),
    *("ECDHE-ECDSA-CHACHA20-POLY1305", "ECDHE-RSA-CHACHA20-POLY1305"),
)
"""Of TLS 1.2: forward secrecy and authenticated encryption only. TLS 1.3 has nothing else."""


@dataclass(frozen=True, kw_only=True)
class Listening:
    """Addresses of the gateway."""

    port: int
    """Plain HTTP, on 127.0.0.1 and nowhere else."""
    tls_port: int
    tls_host: str
    """IP address of the TLS listener; 0.0.0.0 or :: for all."""
    tracing: Tracing | None = None


def listeners(folder: Path, listening: Listening, access_log: Path) -> list[Resource]:
    """Both listeners. They share routes, limits, statistics and access log."""
    manager = connection_manager(folder, access_log, listening.tracing)
    return [
        _listener("gateway", address(listening.port), {"filters": [manager]}),
        _listener(
            "gateway-tls",
            address(listening.tls_port, listening.tls_host),
            {
                "filters": [manager],
                "transport_socket": _tls(folder),
                # A handshake that drips holds a socket no longer than headers that do.
                "transport_socket_connect_timeout": "6s",
            },
        ),
    ]


def _listener(name: str, at: Resource, chain: Resource) -> Resource:
    return {
        "name": name,
        "address": at,
        "per_connection_buffer_limit_bytes": BUFFER_BYTES,
        # One turn of the event loop takes a few connections of a flood, and then serves the others.
        "max_connections_to_accept_per_socket_event": 16,
        "filter_chains": [chain],
    }


def _tls(folder: Path) -> Resource:
    tls = f"{TYPES}.extensions.transport_sockets.tls.v3"
    return {
        "name": "envoy.transport_sockets.tls",
        "typed_config": {
            "@type": f"{tls}.DownstreamTlsContext",
            "common_tls_context": {
                "tls_params": {
                    "tls_minimum_protocol_version": "TLSv1_2",
                    "tls_maximum_protocol_version": "TLSv1_3",
                    "cipher_suites": list(_CIPHERS),
                },
                "alpn_protocols": ["h2", "http/1.1"],
                "tls_certificate_sds_secret_configs": [
                    {"name": CERTIFICATE_NAME, "sds_config": watched(folder, CERTIFICATE_FILE)}
                ],
            },
        },
    }


def certificate(chain: Path, key: Path) -> Resource:
    """Where certificate and key lie. Envoy reads them again when a file is renamed into their folder."""
    return {
        "@type": f"{TYPES}.extensions.transport_sockets.tls.v3.Secret",
        "name": CERTIFICATE_NAME,
        "tls_certificate": {
            "certificate_chain": {"filename": str(chain)},
            "private_key": {"filename": str(key)},
            "watched_directory": {"path": str(chain.parent)},
        },
    }
