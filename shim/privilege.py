"""Giving up root for good: own user, no groups, no capability, and no way to any again."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

PR_CAPBSET_DROP = 24
PR_SET_NO_NEW_PRIVS = 38

_libc = ctypes.CDLL(None, use_errno=True)


def _prctl(option: int, argument: int) -> bool:
    return bool(_libc.prctl(option, argument, 0, 0, 0) == 0)


def drop(uid: int, gid: int) -> None:
    """Becomes `uid` and `gid` with nothing beside. Raises PermissionError if anything is left."""
    capability = 0
    while _prctl(PR_CAPBSET_DROP, capability):
        capability += 1
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    _prctl(PR_SET_NO_NEW_PRIVS, 1)
    _verify(uid)


def _verify(uid: int) -> None:
    status = dict(line.split(":\t", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":\t" in line)
    left = [name for name in ("CapEff", "CapPrm", "CapInh", "CapBnd", "CapAmb") if int(status[name], 16)]
    if uid == 0 or left or status["NoNewPrivs"] != "1" or status["Groups"].strip():
        raise PermissionError(f"privileges are left after giving them up: {left or 'uid 0, groups or new privileges'}")
