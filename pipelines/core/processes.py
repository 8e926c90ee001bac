"""Processes that die with their parent, and the search for those that did not. Linux only."""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Iterator
from pathlib import Path

_PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int, signal_number: int = signal.SIGKILL) -> None:
    """Ask the kernel to signal this process when its parent thread ends. Call it first thing in the child.

    `parent` is the pid that started this process: where it is gone already, the request would come too late.
    """
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal_number, 0, 0, 0)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal_number)


def marked(name: str, value: str) -> Iterator[int]:
    """Pids of living processes whose starting environment holds name=value, this one's own ancestry left out."""
    needle = f"{name}={value}".encode()
    own = ancestry(os.getpid())
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit() or int(folder.name) in own:
            continue
        try:
            if needle in (folder / "environ").read_bytes().split(b"\0") and not is_zombie(int(folder.name)):
                yield int(folder.name)
        except OSError:
            continue


def birth(pid: int) -> str:
    """What tells a process from any other that ever had its pid, whatever is done to the clock. Raises OSError."""
    ticks = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()}:{ticks}"


def session_members(session: int, leader_birth: str) -> Iterator[int]:
    """Pids of the living processes of a session whose leader had the given `birth`.

    Nothing is found where the number has been given to another session since.
    """
    try:
        if birth(session) != leader_birth:
            return
    except OSError:
        # After a reboot the number means nothing.
        if not leader_birth.startswith(Path("/proc/sys/kernel/random/boot_id").read_text().strip()):
            return
        # the leader has ended; while a member lives, the kernel does not give its number away
    own = ancestry(os.getpid())
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit() or int(folder.name) in own:
            continue
        try:
            state, _, _, found = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
        except (OSError, ValueError):
            continue
        if int(found) == session and state not in "ZX":
            yield int(folder.name)


def ancestry(pid: int) -> set[int]:
    """The process and its parents up to init."""
    found: set[int] = set()
    while pid > 0 and pid not in found:
        found.add(pid)
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            break
    return found


def is_zombie(pid: int) -> bool:
    """True for a process that has ended, reaped or not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def start_time(pid: int) -> float:
    """Seconds since the epoch at which a process started."""
    ticks = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    for line in Path("/proc/stat").read_text().splitlines():
        if line.startswith("btime"):
            return int(line.split()[1]) + ticks / os.sysconf("SC_CLK_TCK")
    raise OSError("/proc/stat: no btime")
