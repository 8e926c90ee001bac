"""End what an earlier platform of this home left running: nothing of it may hold a port or write beside the new one."""

from __future__ import annotations

from pipelines.core.errors import PlatformError
from pipelines.core.processes import marked
from pipelines.local import postgres
from pipelines.local.process import PLATFORM_MARK, kill, wait_gone
from pipelines.settings import Settings


def sweep(settings: Settings) -> int:
    """Kill processes with this home's mark, our own ancestry left out, and end PostgreSQL. Returns how many it found.

    Raises PlatformError naming what does not end.
    """
    seen: set[int] = set()
    for _ in range(50):
        found = [pid for pid in marked(PLATFORM_MARK, str(settings.home)) if not postgres.is_server(settings, pid)]
        if not found:
            break
        seen.update(found)
        for pid in found:
            kill(pid)
        wait_gone(found, 1.0)
    else:
        raise PlatformError(f"processes {found} of an earlier platform do not end; stop them and try again")
    return len(seen) + postgres.end_leftover(settings)
