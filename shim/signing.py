"""The keys of session tokens on the agent's side: a file that is kept young, and workers that are told of it.

Without the file (damaged, or its disk is full at the first start) the agent guards taps all the same: no tokens are
given out and none hold until it is mended, which `metashim status` says.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

from shim.errors import StoreError
from shim.keys import KeyFile, Ring

log = logging.getLogger(__name__)

TURN_SECONDS = 10.0
"""A key is made a minute before it signs (see shim.keys); workers hear that it does so much later at most."""


class Signing:
    """`tell` is given the ring whenever it changed, and returns the number of that message (see Workers.settled).

    `trouble` is why the file cannot be read or written, None when all is well.
    """

    def __init__(self, path: Path, clock: Callable[[], float], tell: Callable[[Ring], int]) -> None:
        self.trouble: StoreError | None = None
        self._path = path
        self._clock = clock
        self._tell = tell
        self._file: KeyFile | None = None
        self._told: Ring = ()

    def turn(self) -> None:
        """Makes the next key when it is due, and tells what changed. To be called at the start and now and then."""
        now = self._clock()
        try:
            file = self._opened(now)
            file.turn(now)
        except StoreError as error:
            self._note(error)
        else:
            self.trouble = None
        if self._file is not None and self._file.ring(now) != self._told:
            self._tell_ring(self._file, now)

    def rotate(self, *, drop: bool) -> tuple[int, int]:
        """Makes a new key; `drop` ends the others. The number of the message that told of it, and how many keys hold.

        Raises StoreError if it cannot be kept: all is as it was.
        """
        now = self._clock()
        file = self._opened(now)
        file.rotate(now, drop_old=drop)
        return self._tell_ring(file, now), len(self._told)

    async def run(self) -> None:
        """Turns for ever."""
        while True:
            await asyncio.sleep(TURN_SECONDS)
            self.turn()

    def _opened(self, now: float) -> KeyFile:
        if self._file is None:
            self._file = KeyFile(self._path, now)
        return self._file

    def _tell_ring(self, file: KeyFile, now: float) -> int:
        self._told = file.ring(now)
        return self._tell(self._told)

    def _note(self, error: StoreError) -> None:
        if str(error) != str(self.trouble):
            log.error("%s (%s)", error, error.hint)
        self.trouble = error
