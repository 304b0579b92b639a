"""When a file may have become another one: it was written, replaced or removed, or a link or folder on its way was."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from asyncinotify import Inotify, Mask

log = logging.getLogger(__name__)

SETTLE_SECONDS = 0.02
"""What comes within this is one change: a rename, say, is several events."""

POLL_SECONDS = 2.0
"""How often to look where the kernel does not watch: it has no instance left, or no room for a watch."""

# Not MODIFY: what is being written is read once its writer has closed it.
_CHANGES = (
    Mask.CREATE | Mask.DELETE | Mask.MOVE | Mask.CLOSE_WRITE | Mask.ATTRIB | Mask.DELETE_SELF | Mask.MOVE_SELF
) | Mask.ONLYDIR


async def changes(path: Path) -> AsyncIterator[None]:
    """Yields at first, and then whenever `path` is worth another look. Watches are in place before each yield."""
    warned = False
    while True:
        try:
            with contextlib.closing(Inotify()) as inotify:
                for folder in _folders(path):
                    inotify.add_watch(folder, _CHANGES)
                yield
                await _event(inotify)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR):  # a folder went just now
                continue
            if not warned:
                log.warning("%s cannot be watched (%s): it is looked at every %g s", path, error, POLL_SECONDS)
                warned = True
            yield
            await asyncio.sleep(POLL_SECONDS)


async def _event(inotify: Inotify) -> None:
    """Returns when something happened, and what belongs to it has had the time to."""
    await inotify.get()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(SETTLE_SECONDS):
            while True:
                await inotify.get()


def _folders(path: Path) -> set[Path]:
    """Where something can happen to a file: its folder, those of what its name is a link to, or the nearest folder
    that is there."""
    return {_nearest(folder) for folder in _on_the_way(path)}


def _on_the_way(path: Path) -> Iterator[Path]:
    """The folders of a file and of all links behind its name, which may lead in a circle."""
    for _ in range(40):  # as many as the kernel follows: path_resolution(7)
        yield path.parent
        try:
            path = path.parent / path.readlink()
        except OSError:
            return


def _nearest(folder: Path) -> Path:
    while not folder.is_dir():
        folder = folder.parent
    return folder
