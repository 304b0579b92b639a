"""Processes that need not be children: known by a note of theirs, signalled, and waited for."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
from pathlib import Path


def running(note: Path) -> int:
    """The pid in a note, if that worker still runs: 0 otherwise. A pid is reused, its start time is not."""
    try:
        pid, since = note.read_text().split()
        return int(pid) if _stat(int(pid))[0] != "Z" and began(int(pid)) == since else 0
    except (OSError, ValueError):
        return 0


def began(pid: int) -> str:
    """When a process began, in ticks since boot: field 22 of proc_pid_stat(5)."""
    return _stat(pid)[19]


def _stat(pid: int) -> list[str]:
    """proc_pid_stat(5) from field 3, the state, on."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def kill(pid: int, number: int) -> None:
    """Sends a signal, unless the process is gone; 0 is none."""
    if pid:  # to the kernel 0 is all of one's own group
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def peer_pid(writer: asyncio.StreamWriter) -> int:
    """Who is at the other end of a Unix socket."""
    sock = writer.get_extra_info("socket")
    return int(struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0])


async def ended(pid: int) -> None:
    """Returns at a process's end, be it a child or not; 0 is none."""
    if not pid:
        return
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    over = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(fd, over.set)
    try:
        await over.wait()
    finally:
        loop.remove_reader(fd)
        os.close(fd)
