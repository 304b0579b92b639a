"""What /proc says of processes that may end while one looks: proc(5)."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

GONE = (FileNotFoundError, ProcessLookupError)
"""What /proc answers about a process, or a thread, that has ended: before and after its file was opened."""


def children(pid: int | None = None) -> list[int]:
    """The children of a process, or of this one; whichever of its threads started them."""
    found: list[int] = []
    for task in Path(f"/proc/{pid or os.getpid()}/task").iterdir():
        with contextlib.suppress(*GONE):
            found += map(int, (task / "children").read_text().split())
    return found


def command_line(pid: int) -> bytes:
    """The words of a process, each followed by a zero; none, if it has ended."""
    with contextlib.suppress(*GONE):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def descriptors(pid: int) -> dict[int, str]:
    """What a process has open, by number."""
    found = {}
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(*GONE):
            found[int(fd.name)] = str(fd.readlink())
    return found
