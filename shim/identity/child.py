"""A source of identity that lives in a child process of the agent, whatever it reads: see `said` for what it says.

The child is let go of as soon as anything is odd: it ended, its line makes no sense or is too long. Another one is
started, and until that has said what there is the last known mapping holds, as guests are not cut off for our fault.
It ends by itself when its standard input does, so none outlives an agent that was killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable
from pathlib import Path

from shim.core.exchange import Subject
from shim.core.link import Link
from shim.identity.said import LINE_BYTES, Mapping, applied, decode

log = logging.getLogger(__name__)

BACKOFF_SECONDS = (0.1, 0.5, 1.0, 2.0, 5.0, 15.0)
STEADY_SECONDS = 10.0
"""A child that ran this long did not fail at its start: the next one is started soon."""

SILENT_SECONDS = 5.0
"""How long a child may take for the first thing it says."""

DRAIN_SECONDS = 0.5
"""How long the pipe of a dead child is read for."""


class Child:
    """Runs `python -m module *arguments` for what it says. `name` is what the configuration calls the source."""

    def __init__(self, name: str, module: str, *arguments: str) -> None:
        self.name = name
        self.known = False
        self._command = [sys.executable, "-m", module, *arguments]
        self._mapping: Mapping = {}
        self._fresh = False
        self._down = "it was not started yet"
        self._trouble = ""
        self._since: float | None = time.time()

    def subject_of(self, link: Link) -> Subject | None:
        """Who the last that was said of it says is behind the tap."""
        return self._mapping.get((link.netns, link.name))

    def namespaces(self) -> frozenset[str]:
        """Those that it names taps in."""
        return frozenset(netns for netns, _ in self._mapping if netns)

    def health(self) -> str | None:
        """What is wrong and since when, or None."""
        if self._since is None:
            return None
        what = "; ".join(filter(None, (self._down, self._trouble)))
        since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self._since))
        held = "the last known mapping holds" if self.known else "nothing is known of it yet"
        return f"{what} (since {since}; {held})"

    def refresh(self) -> bool:
        """Whether it said anything new since the last time."""
        fresh, self._fresh = self._fresh, False
        return fresh

    async def watch(self, changed: Callable[[], None]) -> None:
        """Keeps a child running until cancelled; that ends it."""
        failures = 0
        while True:
            began = time.monotonic()
            self._note(await self._life(changed), self._trouble)
            failures = 1 if time.monotonic() - began > STEADY_SECONDS else failures + 1
            await asyncio.sleep(BACKOFF_SECONDS[min(failures, len(BACKOFF_SECONDS)) - 1])

    async def _life(self, changed: Callable[[], None]) -> str:
        """One child from start to end; why it ended."""
        try:
            process = await asyncio.create_subprocess_exec(
                *self._command, stdin=PIPE, stdout=PIPE, limit=LINE_BYTES, cwd="/", start_new_session=True,
                env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
            )  # fmt: skip
        except OSError as error:
            return f"its process cannot be started: {error.strerror}"
        late = asyncio.get_running_loop().call_later(SILENT_SECONDS, self._is_silent)
        why = ""
        try:
            await self._listen(process, late, changed)
        except ValueError as error:
            why = f"its process said what makes no sense and was ended: {error}"
        finally:
            late.cancel()
            status = await _buried(process)
        return why or f"its process ended ({status})"

    def _is_silent(self) -> None:
        self._note("its process has said nothing yet", self._trouble)

    async def _listen(self, process: Process, late: asyncio.TimerHandle, changed: Callable[[], None]) -> None:
        """Until the end of what it says. Raises ValueError for what is no message."""
        assert process.stdout is not None
        while (line := await process.stdout.readline()).endswith(b"\n"):
            late.cancel()
            said = decode(line)
            mapping = applied(self._mapping, said)
            self._note("", said.trouble)
            self._fresh |= mapping != self._mapping or (said.whole and not self.known)
            self._mapping, self.known = mapping, self.known or said.whole
            if self._fresh:
                changed()
            await asyncio.sleep(0)  # there may be thousands of lines at a time

    def _note(self, down: str, trouble: str) -> None:
        """The one place where its health changes."""
        before, self._down, self._trouble = (self._down, self._trouble), down, trouble
        if not down and not trouble:
            self._since = None
        elif self._since is None:
            self._since = time.time()
        for what in {down, trouble} - {"", *before}:
            log.warning("identity source %s: %s", self.name, what)


async def _buried(process: Process) -> str:
    """Kills the child and all that it started, if it is not dead yet; how it ended."""
    assert process.stdout is not None
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    status = await process.wait()
    # To the end of its pipe, or the transport outlives a loop that ends now. Who else holds the pipe is not waited for.
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(DRAIN_SECONDS):
            await process.stdout.read()
    return f"signal {signal.Signals(-status).name}" if status < 0 else f"status {status}"
