"""Runs as a script between the parent and the program: become a user, die with the parent, turn into the program.

`python -I -S launch.py OPTIONS PROGRAM [ARGUMENT...]` where OPTIONS is a JSON object: `parent` (pid that starts us),
`death_signal`, and, to leave root, `uid`, `gid` and `paths` ([path, os.access mode] that the user must reach). A script
and not a preexec_fn, since Python code between fork and exec can deadlock in a process that has threads.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from collections.abc import Sequence

_PR_SET_PDEATHSIG = 1
_PR_SET_SECUREBITS = 28
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_RAISE = 2
_SECBIT_NO_SETUID_FIXUP = 1 << 2
_CAP_DAC_OVERRIDE = 1
_CAP_DAC_READ_SEARCH = 2
_CAPABILITY_VERSION_3 = 0x20080522

_libc = ctypes.CDLL(None, use_errno=True)


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Data(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


def _prctl(option: int, *arguments: int) -> None:
    padded = (*arguments, 0, 0, 0, 0)[:4]
    if _libc.prctl(option, *(ctypes.c_ulong(value) for value in padded)):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _set_capabilities(effective: int, permitted: int, inheritable: int) -> None:
    header = _Header(_CAPABILITY_VERSION_3, 0)
    data = (_Data * 2)(_Data(effective, permitted, inheritable), _Data(0, 0, 0))
    if _libc.capset(ctypes.byref(header), ctypes.byref(data)):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _permitted() -> int:
    header = _Header(_CAPABILITY_VERSION_3, 0)
    data = (_Data * 2)()
    if _libc.capget(ctypes.byref(header), ctypes.byref(data)):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return int(data[0].permitted)


def become(uid: int, gid: int, paths: Sequence[tuple[str, int]]) -> None:
    """Change from root to a user, keeping the one capability it takes to reach `paths`, or none.

    A clone in /root (mode 0700) holds the program and its data where no other user can go; instead of opening the
    folders, the process keeps an ambient right to walk through them (capabilities(7)). Raises OSError naming a path.
    """
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    try:
        # Without it the kernel drops capabilities at setuid, and access(2), which PostgreSQL calls, ignores them.
        _prctl(_PR_SET_SECUREBITS, _SECBIT_NO_SETUID_FIXUP)
    except OSError:
        os.setresuid(uid, uid, uid)
    else:
        os.setresuid(uid, uid, uid)
    for capabilities in (0, 1 << _CAP_DAC_READ_SEARCH, 1 << _CAP_DAC_OVERRIDE):
        permitted = _permitted()
        if capabilities & ~permitted:
            continue
        _set_capabilities(capabilities, permitted, capabilities)
        if all(os.access(path, mode) for path, mode in paths):
            break
    else:
        lost = next(path for path, mode in paths if not os.access(path, mode))
        raise PermissionError(13, f"user {uid} cannot reach it, and root may not lend it the right to", lost)
    # Permitted and ambient must be equal, or exec counts as privileged and forgets the parent-death signal.
    _set_capabilities(capabilities, capabilities, capabilities)
    for number in (_CAP_DAC_READ_SEARCH, _CAP_DAC_OVERRIDE):
        if capabilities & (1 << number):
            _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, number)


def main(arguments: Sequence[str]) -> None:
    """Never returns; errors end the process with a line on stderr."""
    options, program = json.loads(arguments[0]), list(arguments[1:])
    if "uid" in options:
        become(options["uid"], options["gid"], [(path, mode) for path, mode in options["paths"]])
    # After the change of user, which clears it.
    _prctl(_PR_SET_PDEATHSIG, options["death_signal"])
    if os.getppid() != options["parent"]:
        sys.exit("the parent is gone")
    os.execvp(program[0], program)  # noqa: S606  (a list, no shell)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except OSError as error:
        sys.exit(f"cannot start {sys.argv[2]}: {error}")
