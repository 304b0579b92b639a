"""What the agent says to systemd, and what systemd keeps for it: sd_notify(3), sd_listen_fds(3)."""

from __future__ import annotations

import array
import contextlib
import os
import socket
from collections.abc import Sequence

FIRST_FD = 3  # SD_LISTEN_FDS_START


def notify(state: str, fds: Sequence[int] = ()) -> None:
    """Tells systemd, if it asked; `fds` are for it to keep (FDSTORE=1)."""
    path = os.environ.get("NOTIFY_SOCKET")
    if not path:
        return
    address = "\0" + path[1:] if path.startswith("@") else path
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock, contextlib.suppress(OSError):
        sock.sendmsg([state.encode()], rights, 0, address)


def keep(name: str, fd: int) -> None:
    """Has a descriptor kept over restarts, up to the unit's FileDescriptorStoreMax= in all."""
    notify(f"FDSTORE=1\nFDNAME={name}", [fd])


def drop(name: str) -> None:
    """Has what was kept by that name closed."""
    notify(f"FDSTOREREMOVE=1\nFDNAME={name}")


def kept() -> list[tuple[str, int]]:
    """What a former run had kept, by name, as descriptors that are this process's own now. To be asked once: the
    environment says nothing of it afterwards, as it is not for children."""
    pid, count, names = (os.environ.pop(f"LISTEN_{what}", "") for what in ("PID", "FDS", "FDNAMES"))
    if pid != str(os.getpid()) or not count.isdecimal():
        return []
    fds = range(FIRST_FD, FIRST_FD + int(count))
    for fd in fds:
        os.set_inheritable(fd, False)
    told = names.split(":")
    return [(told[place] if place < len(told) else "", fd) for place, fd in enumerate(fds)]
