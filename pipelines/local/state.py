"""What the supervisor tells the commands: a small file, replaced as a whole at every change."""

from __future__ import annotations

import fcntl
import json
import os
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from pipelines.core.processes import birth, is_zombie
from pipelines.settings import Settings

Phase = Literal["starting", "ready", "stopping", "stopped", "failed"]
ProcessState = Literal["starting", "ready", "unresponsive", "restarting", "stopped"]


@dataclass(frozen=True, kw_only=True)
class ProcessStatus:
    """One process of the platform."""

    name: str
    pid: int | None
    state: str
    port: int | None
    restarts: int = 0
    seconds: float | None = None
    """From its start until it was ready."""
    log: str = ""


@dataclass(frozen=True, kw_only=True)
class PlatformState:
    """The whole platform, as the supervisor last saw it."""

    phase: Phase
    identity: str
    """Digest of code, versions and settings that the supervisor runs with."""
    credentials: str = ""
    """Digest of the AWS settings that steps inherit."""
    without: tuple[str, ...] = ()
    processes: tuple[ProcessStatus, ...] = ()
    troubles: tuple[str, ...] = ()
    """What does not work, though every process does."""
    error: str = ""
    exit_code: int = 0
    stop_s: float = 0.0
    """How long its end may take, with every request in flight."""
    supervisor_pid: int = field(default_factory=os.getpid)
    supervisor_birth: str = field(default_factory=lambda: birth(os.getpid()))


def folder(settings: Settings) -> Path:
    """Runtime files of the platform (state, locks, sockets): nothing here outlives a restart in meaning."""
    return settings.home / "run"


def lock_path(settings: Settings) -> Path:
    """Held by the keeper for as long as the platform is up; holds its pid."""
    return folder(settings) / "keeper.lock"


def keeper_pid(settings: Settings) -> int | None:
    """Pid of the running keeper, None while the platform is down."""
    try:
        with lock_path(settings).open("r") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return int(file.read().strip() or 0)
            return None
    except FileNotFoundError:
        return None


def write(settings: Settings, state: PlatformState) -> None:
    path = folder(settings) / "platform.json"
    partial = path.with_name(f"platform.{os.getpid()}.partial")
    partial.write_text(json.dumps(asdict(state), indent=1))
    partial.replace(path)


def current(settings: Settings) -> PlatformState | None:
    """What runs now; None while the platform is down. A supervisor that was killed counts as one that starts."""
    found = read(settings) if keeper_pid(settings) is not None else None
    if found is None:
        return None
    try:
        alive = not is_zombie(found.supervisor_pid) and birth(found.supervisor_pid) == found.supervisor_birth
    except OSError:
        alive = False
    return found if alive else replace(found, phase="starting", processes=())


def read(settings: Settings) -> PlatformState | None:
    """The last state written, by a supervisor that may be gone."""
    try:
        table: dict[str, Any] = json.loads((folder(settings) / "platform.json").read_text())
        processes = tuple(ProcessStatus(**one) for one in table.pop("processes"))
        lists = {name: tuple(table.get(name, ())) for name in ("without", "troubles")}
        return PlatformState(**{**table, **lists}, processes=processes)
    except (OSError, ValueError, TypeError, KeyError):
        return None
