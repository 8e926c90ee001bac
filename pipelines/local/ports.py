"""Which ports this installation listens on: the gateway's is fixed, the others give way to whoever was there first."""

from __future__ import annotations

import errno
import json
import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from pipelines.core.errors import UserError
from pipelines.settings import DEFAULT_PORTS, Settings

GATEWAY_SETTING = "DARKROOM_GATEWAY_PORT"
_TRIED = 200


class Reservations:
    """Ports promised to the services of this process, for as long as it lives.

    A service binds its port seconds after it was chosen. Until then an abstract unix socket named after the port keeps
    other platforms of this machine away from it; the kernel frees it with the process.
    """

    def __init__(self) -> None:
        self._held: dict[int, socket.socket] = {}

    def take(self, port: int) -> bool:
        """True when the port is ours: already, or free and now reserved."""
        if port in self._held:
            return True
        if not is_free(port):
            return False
        holder = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            holder.bind(f"\0darkroom-port-{port}")
        except OSError:
            holder.close()
            return False
        self._held[port] = holder
        return True

    def release(self) -> None:
        for holder in self._held.values():
            holder.close()
        self._held.clear()


def assign(settings: Settings, reservations: Reservations) -> dict[str, int]:
    """Choose and reserve every port, and keep the choice in ports.json. Raises UserError naming one that is taken."""
    preferred = {service: settings.port(service) for service in DEFAULT_PORTS}
    fixed = settings.fixed_ports
    chosen = {"gateway": settings.gateway_port, **{service: preferred[service] for service in sorted(fixed)}}
    for service, port in chosen.items():
        others = {other: number for other, number in chosen.items() if other != service}
        if port in others.values():
            twice = next(other for other, number in others.items() if number == port)
            raise UserError(f"port {port} is set for the {service} and for the {twice}; change DARKROOM_*_PORT")
        _take_strictly(reservations, service, port)
    for service in (one for one in DEFAULT_PORTS if one not in fixed):
        # Not one that another service would like: moving one would move them all.
        others_like = {preferred[other] for other in DEFAULT_PORTS if other != service}
        chosen[service] = _next_free(reservations, preferred[service], {*chosen.values(), *others_like})
    path = settings.home / "ports.json"
    settings.home.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"ports.{os.getpid()}.partial")
    temporary.write_text(json.dumps(chosen, indent=1) + "\n")
    temporary.replace(path)
    return chosen


def _take_strictly(reservations: Reservations, service: str, port: int) -> None:
    if not reservations.take(port):
        listener = who_listens(port)
        by = f" by {listener}" if listener else ""
        raise UserError(
            f"port {port} of the {service} is in use{by}; stop it, or choose another with "
            f"DARKROOM_{service.upper()}_PORT=<port>"
        )


def _next_free(reservations: Reservations, preferred: int, taken: set[int]) -> int:
    for port in range(preferred, min(preferred + _TRIED, 65536)):
        if port not in taken and reservations.take(port):
            return port
    raise UserError(f"ports {preferred} to {preferred + _TRIED} are all in use; set DARKROOM_*_PORT variables")


def is_free(port: int) -> bool:
    """True when 127.0.0.1:port can be listened on now. Raises UserError for a port that this user may never have."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
            # Two sockets may be bound with SO_REUSEADDR, but only one may listen.
            probe.listen(1)
        except OSError as error:
            if error.errno == errno.EACCES:
                raise UserError(f"port {port}: this user may not listen on it; choose one above 1024") from error
            return False
    return True


def free_port() -> int:
    """A port that is free now, of the kernel's choice."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def who_listens(port: int) -> str | None:
    """'name (pid N)' of the process that listens on a TCP port, where the system lets us know."""
    wanted = {f"socket:[{inode}]" for table in ("tcp", "tcp6") for inode in _listening(table, port)}
    if not wanted:
        return None
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        with suppress(OSError):
            if not wanted.isdisjoint(_links(folder / "fd")):
                return f"{(folder / 'comm').read_text().strip()} (pid {folder.name})"
    return None


def _links(folder: Path) -> Iterator[str]:
    """Where the links of a folder in /proc lead; they come and go while we look."""
    for link in folder.iterdir():
        with suppress(OSError):
            yield str(link.readlink())


def _listening(table: str, port: int) -> list[str]:
    """Inodes of sockets that listen on the port, from /proc/net (state 0A)."""
    try:
        rows = Path(f"/proc/net/{table}").read_text().splitlines()[1:]
    except OSError:
        return []
    fields = [row.split() for row in rows]
    return [row[9] for row in fields if row[3] == "0A" and int(row[1].rpartition(":")[2], 16) == port]
