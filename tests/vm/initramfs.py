"""An initramfs, written and nothing else: cpio's "newc" format, as the kernel unpacks it. PURE.

The kernel takes several, one after the other in one file, and what comes later wins.
See Documentation/driver-api/early-userspace/buffer-format.rst.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable
from dataclasses import dataclass

MAGIC = b"070701"
TRAILER = "TRAILER!!!"


@dataclass(frozen=True, slots=True)
class Entry:
    """A file, folder, link or device; `path` without a slash in front. `mode` has the kind's bits, as st_mode."""

    path: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def file(path: str, data: bytes, mode: int = 0o644) -> Entry:
    return Entry(path, stat.S_IFREG | mode, data)


def folder(path: str) -> Entry:
    return Entry(path, stat.S_IFDIR | 0o755)


def link(path: str, target: str) -> Entry:
    return Entry(path, stat.S_IFLNK | 0o777, target.encode())


def device(path: str, major: int, minor: int) -> Entry:
    """A character device."""
    return Entry(path, stat.S_IFCHR | 0o600, device=(major, minor))


def archive(entries: Iterable[Entry]) -> bytes:
    """All of it, in that order: folders before what is in them."""
    packed = [_pack(number, entry) for number, entry in enumerate(entries, 1)]
    return b"".join([*packed, _pack(0, Entry(TRAILER, 0))])


def _pack(number: int, entry: Entry) -> bytes:
    name = entry.path.encode() + b"\0"
    links, owner, time, held_by = 1, 0, 0, 0
    fields = (number, entry.mode, owner, owner, links, time, len(entry.data), held_by, held_by, *entry.device)
    head = MAGIC + b"".join(b"%08X" % field for field in (*fields, len(name), 0))
    return _padded(head + name) + _padded(entry.data)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
