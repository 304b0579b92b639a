"""The child's side of a source that lives in one: without privileges beside root's files, it says what it knows.

    speaker = Speaker()
    speaker.say(Said(whole=True, claims=...))

It ends with the agent in any case: when its standard input does, and by the kernel's signal when the agent dies.
"""

from __future__ import annotations

import ctypes
import os
import signal
import threading
from collections.abc import Iterable

from shim.identity.said import Said, encode

# linux/prctl.h, linux/capability.h
_PR_SET_PDEATHSIG, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 1, 24, 38
_VERSION_3 = 0x20080522

CAP_DAC_OVERRIDE, CAP_SYS_ADMIN = 1, 21

_libc = ctypes.CDLL(None, use_errno=True)


class Speaker:
    """Made once, before anything foreign is read. `keep` are the capabilities (their numbers) that the child needs.

    It stays root's: the sockets and files that it reads are. Standard output is for messages alone from then on, what
    libraries print goes to standard error.
    """

    def __init__(self, keep: Iterable[int] = ()) -> None:
        shed(keep)
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        self._out = os.dup(1)
        os.dup2(2, 1)
        threading.Thread(target=_end_with_input, daemon=True).start()

    def say(self, said: Said) -> None:
        """Returns when the agent has it, or will; raises OSError when there is none. Raises ValueError: too long."""
        line = encode(said)
        while line:
            line = line[os.write(self._out, line) :]


def _end_with_input() -> None:
    """A thread of its own, as the main one may wait for what never answers."""
    while os.read(0, 1 << 12):
        pass
    os._exit(0)


def shed(keep: Iterable[int] = ()) -> None:
    """Gives up every capability but those, and the way to any by executing a file. Raises OSError."""
    kept = frozenset(keep)
    capability = 0
    while capability in kept or _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0) == 0:
        capability += 1
    header = (ctypes.c_uint32 * 2)(_VERSION_3, 0)
    held = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; then the same for capabilities 32 to 63
    _call(_libc.capget, header, held)
    for half in (0, 1):
        mask = sum(1 << (one - 32 * half) for one in kept if one // 32 == half)
        held[3 * half] = held[3 * half + 1] = held[3 * half + 1] & mask
        held[3 * half + 2] = 0
    _call(_libc.capset, header, held)
    if _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "PR_SET_NO_NEW_PRIVS")


def _call(function: ctypes._NamedFuncPointer, *arguments: object) -> None:
    if function(*arguments):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
