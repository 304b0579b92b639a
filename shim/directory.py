"""The watched folder of sources: what its files say is what is to be in the store.

Events only wake it; then everything is watched anew and read again, so that nothing hangs on what was seen or missed. A
look begins with new watches, each set before its folder is read. It follows when an event came and all has been quiet
for SETTLE_SECONDS, and every RESCAN_SECONDS for what no event tells of (a network's file system, what is mounted).

Watching is asyncinotify's matter: typed, and it says when the kernel refused a watch or lost events. pyroute2's
inotify does neither, and its descriptor would be inherited by the workers.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace
from pathlib import Path

from asyncinotify import Event, Inotify, Mask, Watch

from shim import listing
from shim.core.source import Source, in_order
from shim.errors import MetashimError
from shim.metadata.folder import ORIGIN, Fault, Key, Listing, sources_of

log = logging.getLogger(__name__)

SETTLE_SECONDS = 0.05
SETTLE_MOST = 1.0
RESCAN_SECONDS = 300.0

_CHANGES = (
    Mask.CREATE | Mask.DELETE | Mask.MOVE | Mask.CLOSE_WRITE | Mask.ATTRIB | Mask.DELETE_SELF | Mask.MOVE_SELF
) | Mask.ONLYDIR
_ABOVE = Mask.CREATE | Mask.DELETE | Mask.MOVE | Mask.ATTRIB | Mask.ONLYDIR

Told = list[tuple[str, str]]
"""What is wrong, each with what to do."""

Apply = Callable[[list[Source], Told], Awaitable[Told | None]]


class Directory:
    """Keeps what is in the folder `path` in force by `apply`.

    That is given all sources that there are to be, in order, and what is wrong with others. It answers with what is
    wrong with those that it left out, or raises MetashimError, nothing changed; in both cases it is called again at
    the next look. It may be called with what is in force already.

    `known` are the sources in force that an earlier run made of the folder: the last good versions of what has a
    fault now.
    """

    def __init__(self, path: Path, apply: Apply, known: Iterable[Source] = ()) -> None:
        self._path = path.absolute()
        self._apply = apply
        plain = (replace(one, origin=ORIGIN, revision=0, changed=0.0) for one in known)
        self._good: dict[Key, Source] = {(one.scope, one.name): one for one in plain}
        self._applied: tuple[dict[Key, Source], list[Fault]] | None = None
        self._faults: list[Fault] = []
        self._woken = asyncio.Event()

    @property
    def faults(self) -> Told:
        """What is wrong now, each with what to do."""
        return _told(self._faults)

    def wake(self) -> None:
        """Have it applied again soon: what is in force is another without the folder's doing."""
        self._woken.set()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            if self._woken.is_set():
                self._woken.clear()
                self._applied = None
            with contextlib.closing(Watches(self._path)) as watches:
                try:
                    found, wanted, faults = await asyncio.to_thread(self._look, watches)
                    await self._take(found, wanted, faults, watches.faults)
                except Exception:  # the boundary of one look
                    log.exception("a look at %s failed", self._path)
                    self._note([Fault(f"{self._path}: it could not be taken over", "see the log")])
                await self._change(watches)

    def _look(self, watches: Watches) -> tuple[Listing, dict[Key, Source], list[Fault]]:
        """What is in the folder, and what becomes of it; takes its time."""
        found = listing.read(self._path, watches.add)
        return found, *sources_of(found, self._good)

    async def _take(
        self, found: Listing, wanted: dict[Key, Source], faults: list[Fault], unwatched: list[Fault]
    ) -> None:
        refused: list[Fault] = []
        if "" not in found.lost and (wanted, faults) != self._applied:
            self._applied = None
            try:
                left_out = await self._apply(list(in_order(wanted.values())), _told(faults))
            except MetashimError as error:
                refused = [Fault(str(error), error.hint)]
            else:
                self._good = wanted
                refused = [Fault(*one) for one in left_out or ()]
                log.info("%s: %d sources", self._path, len(wanted))
            if not refused:
                self._applied = wanted, faults
        self._note([*refused, *unwatched, *faults])

    async def _change(self, watches: Watches) -> None:
        """Returns when it is to be looked at again."""
        waiting = [asyncio.ensure_future(watches.changed()), asyncio.ensure_future(self._woken.wait())]
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    def _note(self, faults: list[Fault]) -> None:
        for fault in faults:
            if fault not in self._faults:
                log.warning("%s (%s)", fault.what, fault.hint)
        self._faults = faults


def _told(faults: list[Fault]) -> Told:
    return [(fault.what, fault.hint) for fault in faults]


class Watches:
    """What tells that something may have changed in or above the folder `path` since this was made.

    `add` may be called in another thread, `changed` not meanwhile. `faults`: why it will not tell.
    """

    def __init__(self, path: Path) -> None:
        self.faults: list[Fault] = []
        self._above: tuple[Watch, str] | None = None
        self._inotify: Inotify | None = None
        try:
            self._inotify = Inotify()
        except OSError as error:
            self._note(error)
        else:
            self._watch_above(path)

    def _watch_above(self, path: Path) -> None:
        """Watch for the folder itself, which may come and go, in the nearest one that is there."""
        for child in (path, *path.parents[:-1]):
            if watch := self._watch(child.parent, _ABOVE):
                self._above = watch, child.name
                return

    def add(self, folder: Path) -> None:
        """Watch what is right in a folder."""
        watch = self._watch(folder, _CHANGES)
        if self._above is not None and watch is self._above[0]:
            self._above = None  # the folder's path leads back to where it lies

    def _watch(self, folder: Path, mask: Mask) -> Watch | None:
        if self._inotify is None:
            return None
        try:
            return self._inotify.add_watch(folder, mask)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR):  # who reads it will see
                self._note(error)
            return None

    def _note(self, error: OSError) -> None:
        why = os.strerror(error.errno or 0)
        what = f"changes of sources are seen within {RESCAN_SECONDS:.0f} s, and no sooner: {why}"
        limit = "max_user_instances" if error.errno == errno.EMFILE else "max_user_watches"
        fault = Fault(what, f"see that sysctl fs.inotify.{limit} is large enough")
        if fault not in self.faults:
            self.faults.append(fault)

    async def changed(self) -> None:
        """Returns once something may have changed and all is quiet, or when it is time to look anyway."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(RESCAN_SECONDS):
                await self._event()
            async with asyncio.timeout(SETTLE_MOST):
                while True:
                    async with asyncio.timeout(SETTLE_SECONDS):
                        await self._event()

    async def _event(self) -> None:
        if self._inotify is None:
            await asyncio.Event().wait()
            return
        while not self._concerns_us(await self._inotify.get()):
            pass

    def _concerns_us(self, event: Event) -> bool:
        """Whether it is not only of another one's in the folder above."""
        if self._above is None or event.watch is not self._above[0] or event.name is None:
            return True
        return str(event.name) == self._above[1]

    def close(self) -> None:
        """Nothing more is told."""
        if self._inotify is not None:
            self._inotify.close()
