"""A static file as the origin of identity.

    [[port]]
    interface = "tap1"
    instance = "6f1c5a0e-8f43-4c0a-9d1e-2b7c3d4e5f60"
    netns = "rack1"          # optional; without it, the agent's own namespace
    project = "5f1d0e2c9a3b4c5d8e7f60718293a4b5"   # optional: what a backend is told of the instance, in place of
    address = "10.0.0.5"                           # what its document says

The file counts as a whole: one wrong entry and the last good mapping holds, with the error in `health`,
because half a mapping would cut guests off. A file that goes away is such an error too (editors unlink
and write anew); one that was never there is not, as the source is on by default. Write a new file and
rename it over the old one: a reader that meets a file half written cannot always tell.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable
from pathlib import Path

import msgspec

from shim.core.exchange import Subject
from shim.core.instance import parse_instance
from shim.core.link import OWN_NETNS, Link
from shim.core.names import parse_ip, parse_netns, parse_project, parse_tap
from shim.identity.watched import changes

Mapping = dict[tuple[str, str], Subject]


class _Port(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    interface: str
    instance: str
    netns: str = ""
    project: str = ""
    address: str = ""


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    port: list[_Port] = []


class StaticFile:
    """The mapping of one file, read again when its stat changes."""

    name = "file"

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: Mapping = {}
        self._error: str | None = None
        self._stamp: tuple[int, ...] | None = None

    @property
    def known(self) -> bool:
        """Not while there is a file of which nothing could be read yet."""
        return self._stamp is not None or self._error is None

    def subject_of(self, link: Link) -> Subject | None:
        """Who the file says is behind the tap."""
        return self._known.get((link.netns, link.name))

    def namespaces(self) -> frozenset[str]:
        """Those that the file names."""
        return frozenset(netns for netns, _ in self._known if netns != OWN_NETNS)

    def health(self) -> str | None:
        """Why the file's present content is not in force, or None."""
        return f"{self._path}: {self._error}; the last good mapping holds" if self._error else None

    def refresh(self) -> bool:
        """Read the file if it is another than the last time."""
        try:
            before = _stamp(self._path.stat())
            if before == self._stamp:
                self._error = None
                return False
            now = parse(self._path.read_bytes())
        except FileNotFoundError:
            self._error = "it is gone (an empty file would clear the mapping)" if self._stamp else None
            return False
        except (OSError, ValueError) as error:
            self._error = getattr(error, "strerror", None) or str(error)
            return False
        # The stamp is older than the content, so what is written meanwhile is read the next time.
        self._stamp, self._error = before, None
        changed, self._known = now != self._known, now
        return changed

    async def watch(self, changed: Callable[[], None]) -> None:
        """The kernel tells when the file changes, or a folder or link on the way to it."""
        async for _ in changes(self._path):
            changed()


def parse(raw: bytes) -> Mapping:
    """The mapping in a file's bytes. Raises ValueError naming the entry that is wrong."""
    ports = msgspec.convert(tomllib.loads(raw.decode()), _File).port
    known: Mapping = {}
    for number, port in enumerate(ports, 1):
        try:
            key = parse_netns(port.netns), parse_tap(port.interface)
            if key in known:
                raise ValueError(f"{port.interface!r} is there twice")
            known[key] = Subject(
                parse_instance(port.instance), parse_project(port.project), parse_ip(port.address)
            )
        except ValueError as error:
            raise ValueError(f"port {number}: {error}") from None
    return known


def _stamp(stat: os.stat_result) -> tuple[int, ...]:
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns
