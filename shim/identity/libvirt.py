"""libvirt as the origin of identity: a child of the agent's, `python -m shim.identity.libvirt [URI [FOLDER]]`.

It follows the domains by a read-only connection and by libvirtd's state files (`domains` says which counts when), and
says on standard output what is new (`said`). Whatever may block does so in a thread: opening a connection to a libvirtd
that hangs, or a question to it until libvirt's keepalive gives up. It stays root, as the files are root's, with no
capability.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import os
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from shim import log as logs
from shim.identity.domain import XML_MAX
from shim.identity.domains import Domains, Reading, read
from shim.identity.speaker import Speaker
from shim.identity.watched import changes

URI, FOLDER = "qemu:///system", "/run/libvirt/qemu"

KEEPALIVE = 5, 2
"""Seconds between two questions whether libvirtd lives, and how many may stay without an answer."""

ANSWER_SECONDS = 3.0
RETRY_SECONDS = 1.0
LIBRARY_SECONDS = 5.0
NO_LIBRARY = "the libvirt library is not here: apt install python3-libvirt"

_EVENTS = ("LIFECYCLE", "DEVICE_ADDED", "DEVICE_REMOVED", "METADATA_CHANGE")

Stamp = tuple[int, ...]


class Connection:
    """Keeps `domains` in step with libvirtd; calls `told` when they may have changed."""

    def __init__(self, libvirt: Any, uri: str, domains: Domains, told: Callable[[], None]) -> None:
        self._libvirt = libvirt
        self._uri = uri
        self._domains = domains
        self._told = told
        self._woken = asyncio.Event()
        self._stale: set[str] = set()
        self._closed = ""

    async def run(self) -> None:
        """Until cancelled."""
        self._libvirt.registerErrorHandler(lambda context, error: None, None)  # else it prints each
        self._libvirt.virEventRegisterDefaultImpl()
        threading.Thread(target=self._turn, daemon=True).start()
        while True:
            try:
                why = await self._follow(await self._opened())
            except self._libvirt.libvirtError as error:
                why = str(error)
            self._lost(f"{self._uri}: {why}")
            await asyncio.sleep(RETRY_SECONDS)

    def _turn(self) -> None:
        """libvirt's own event loop, which calls `_subscribe`'s functions; in a thread of its own."""
        while True:
            try:
                self._libvirt.virEventRunDefaultImpl()
            except self._libvirt.libvirtError:
                os._exit(1)  # there will be no more events: the next child begins anew

    def _lost(self, why: str) -> None:
        self._domains.lost(why)
        self._told()

    async def _opened(self) -> Any:
        opening = asyncio.ensure_future(asyncio.to_thread(self._libvirt.openReadOnly, self._uri))
        await asyncio.wait({opening}, timeout=ANSWER_SECONDS)
        if not opening.done():
            self._lost(f"{self._uri}: it does not answer")
        return await opening

    async def _follow(self, connection: Any) -> str:
        """Until the connection was closed; why. Raises libvirtError when it broke in use."""
        self._closed = ""
        self._stale.clear()
        registered: list[int] = []
        try:
            await asyncio.to_thread(self._subscribe, connection, asyncio.get_running_loop(), registered)
            self._domains.connected(await asyncio.to_thread(self._read_all, connection))
            while not self._closed:
                self._told()
                await self._woken.wait()
                self._woken.clear()
                while self._stale:
                    instance = self._stale.pop()
                    self._domains.changed(instance, await asyncio.to_thread(self._read, connection, instance))
            return self._closed
        finally:
            await asyncio.to_thread(self._leave, connection, registered)

    def _subscribe(self, connection: Any, loop: asyncio.AbstractEventLoop, registered: list[int]) -> None:
        """Events only say which domain is to be read again. Drivers in the process itself (test:///) lack some."""

        def event(connection: Any, domain: Any, *what: Any) -> None:
            loop.call_soon_threadsafe(self._event, domain.UUIDString())

        def closed(connection: Any, reason: int, context: Any) -> None:
            silent = reason == self._libvirt.VIR_CONNECT_CLOSE_REASON_KEEPALIVE
            loop.call_soon_threadsafe(self._close, "it does not answer any more" if silent else "it ended")

        with self._lacking():
            connection.registerCloseCallback(closed, None)
        with self._lacking():
            connection.setKeepAlive(*KEEPALIVE)
        for name in _EVENTS:
            number = getattr(self._libvirt, f"VIR_DOMAIN_EVENT_ID_{name}")
            with self._lacking():
                registered.append(connection.domainEventRegisterAny(None, number, event, None))

    @contextlib.contextmanager
    def _lacking(self) -> Iterator[None]:
        try:
            yield
        except self._libvirt.libvirtError as error:
            if error.get_error_code() != self._libvirt.VIR_ERR_NO_SUPPORT:
                raise

    def _event(self, instance: str) -> None:
        self._stale.add(instance)
        self._woken.set()

    def _close(self, why: str) -> None:
        self._closed = why
        self._woken.set()

    def _read_all(self, connection: Any) -> dict[str, Reading]:
        running = connection.listAllDomains(self._libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE)
        found = {domain.UUIDString(): self._read_one(connection, domain) for domain in running}
        return {instance: reading for instance, reading in found.items() if reading is not None}

    def _read(self, connection: Any, instance: str) -> Reading | None:
        try:
            domain = connection.lookupByUUIDString(instance)
        except self._libvirt.libvirtError as error:
            if error.get_error_code() == self._libvirt.VIR_ERR_NO_DOMAIN:
                return None
            raise
        return self._read_one(connection, domain)

    def _read_one(self, connection: Any, domain: Any) -> Reading | None:
        """What a domain's XML says; None where it runs no more or has no taps. Raises libvirtError when the connection
        is the matter."""
        what = f"domain {domain.name()}"
        try:
            reading = read(what, domain.XMLDesc(0))
        except self._libvirt.libvirtError as error:
            if error.get_error_code() == self._libvirt.VIR_ERR_NO_DOMAIN:
                return None
            if not connection.isAlive():
                raise
            return Reading(fault=f"{what}: {error}")
        return reading if reading.claims or reading.fault else None

    def _leave(self, connection: Any, registered: list[int]) -> None:
        """Lets go of a connection, broken or not: what is registered would keep it."""
        steps = [lambda number=number: connection.domainEventDeregisterAny(number) for number in registered]
        for step in (*steps, connection.unregisterCloseCallback, connection.close):
            with contextlib.suppress(self._libvirt.libvirtError):
                step()


class StateFiles:
    """Keeps `domains` in step with the files in a folder; calls `told` when they may have changed."""

    def __init__(self, folder: Path, domains: Domains, told: Callable[[], None]) -> None:
        self._folder = folder
        self._domains = domains
        self._told = told
        self._known: dict[str, tuple[Stamp, Reading]] = {}

    async def run(self) -> None:
        """Until cancelled."""
        async for _ in changes(self._folder / "*.xml"):
            self._look()
            self._told()

    def _look(self) -> None:
        try:
            self._known = {path.name: self._file(path) for path in self._folder.iterdir() if path.suffix == ".xml"}
        except OSError as error:
            self._domains.unread(f"nor can {self._folder} be read: {error.strerror}")
            return
        self._domains.filed({name: reading for name, (_, reading) in self._known.items()})

    def _file(self, path: Path) -> tuple[Stamp, Reading]:
        """A file that is as it was is not read again. One that just went has nothing to say."""
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
            try:
                return self._open_file(path, fd)
            finally:
                os.close(fd)
        except FileNotFoundError:
            return (), Reading()
        except OSError as error:
            return (), Reading(fault=f"{path}: {error.strerror}")

    def _open_file(self, path: Path, fd: int) -> tuple[Stamp, Reading]:
        found = os.fstat(fd)
        stamp = found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
        known = self._known.get(path.name)
        if known is not None and known[0] == stamp:
            return known
        if not stat.S_ISREG(found.st_mode):
            return stamp, Reading(fault=f"{path}: it is no file")
        with os.fdopen(fd, "rb", closefd=False) as file:
            return stamp, _reading(path, file.read(XML_MAX + 1))


def _reading(path: Path, raw: bytes) -> Reading:
    try:
        return read(str(path), raw.decode())
    except UnicodeDecodeError:
        return Reading(fault=f"{path}: it is not UTF-8")


async def _library(domains: Domains, told: Callable[[], None]) -> Any:
    """libvirt's module, once it can be imported: it may be installed meanwhile."""
    while True:
        try:
            return importlib.import_module("libvirt")
        except ImportError:
            domains.lost(NO_LIBRARY)
            told()
            await asyncio.sleep(LIBRARY_SECONDS)
            importlib.invalidate_caches()


async def follow(uri: str, folder: str) -> None:
    """Says what is new, until it is cancelled or cannot."""
    speaker, domains, woken = Speaker(), Domains(), asyncio.Event()

    async def ask() -> None:
        await Connection(await _library(domains, woken.set), uri, domains, woken.set).run()

    async def tell() -> None:
        while await woken.wait():
            woken.clear()
            if said := domains.news():
                speaker.say(said)

    async with asyncio.TaskGroup() as group:
        group.create_task(tell())
        if folder:
            group.create_task(StateFiles(Path(folder), domains, woken.set).run())
        group.create_task(ask())


def main(uri: str = URI, folder: str = FOLDER) -> None:
    """Ends with the agent. `folder` may be empty: no state files."""
    logs.setup("warning")
    asyncio.run(follow(uri, folder))


if __name__ == "__main__":
    main(*sys.argv[1:])
