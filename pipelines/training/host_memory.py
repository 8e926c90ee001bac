"""Memory of the host that a training has used once stays with its process."""

from __future__ import annotations

import ctypes
import logging

log = logging.getLogger(__name__)

# glibc's malloc.h
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8
_NEVER = 2**31 - 1
_GROWTH_BYTES = 64 << 20


def keep() -> bool:
    """Have malloc reuse what is freed instead of giving it back to the kernel; False where this is not glibc.

    A CPU step allocates the same activations again and again. By default those above 32 MB are mapped anew each time,
    and the kernel fills their pages with zeros, a fault for every 4 KB: 86,000 a step of airbench at 32 px with batches
    of 500, a tenth of its time. Afterwards there are none, at the same peak.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    settings = {
        _M_MMAP_MAX: 0,  # everything from the heap, which is kept
        _M_TRIM_THRESHOLD: _NEVER,
        _M_TOP_PAD: _GROWTH_BYTES,
        _M_ARENA_MAX: 1,  # other arenas are made of mapped pieces, which come and go
    }
    kept = all(mallopt(name, value) for name, value in settings.items())
    if not kept:
        log.warning("malloc takes no advice; steps on the CPU are slower")
    return kept
