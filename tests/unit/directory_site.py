"""A folder that is watched, and what is in force of it, for the tests of the watched folder."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from shim.core.source import Source
from shim.directory import Directory

WAIT = 5.0
QUIET = 0.15
"""Some times the settling: long enough for whatever is to come of a change."""

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="not root: cannot give a file away")


class Force:
    """What is in force, as the agent would keep it. `refuse` is raised instead of taking more; names in `others` are
    left out."""

    def __init__(self) -> None:
        self.sources: list[Source] = []
        self.told: list[tuple[str, str]] = []
        self.calls = 0
        self.refuse: Exception | None = None
        self.others: set[str] = set()
        self.during: Callable[[], None] = lambda: None

    async def apply(self, sources: list[Source], faults: list[tuple[str, str]]) -> list[tuple[str, str]]:
        self.calls += 1
        self.during()
        if self.refuse is not None:
            raise self.refuse
        self.sources, self.told = [one for one in sources if one.name not in self.others], faults
        return [(f"{one.name} is an operator's", "rename it") for one in sources if one.name in self.others]

    @property
    def bodies(self) -> dict[str, bytes]:
        return {f"{one.scope.text}/{one.name}": one.body for one in self.sources}


async def until(condition: Callable[[], object], seconds: float = WAIT) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to be"
        await asyncio.sleep(0.005)


class Site:
    """A folder that is watched."""

    def __init__(self, folder: Path, known: list[Source] | None = None) -> None:
        self.folder = folder
        self.force = Force()
        self.directory = Directory(folder, self.force.apply, known or [])

    async def bodies(self, want: dict[str, bytes]) -> None:
        await until(lambda: self.force.bodies == want)

    async def fault(self, what: str) -> str:
        """Waits until a fault has these words; its hint."""
        await until(lambda: any(what in found for found, _ in self.directory.faults))
        return next(hint for found, hint in self.directory.faults if what in found)

    async def well(self) -> None:
        await until(lambda: not self.directory.faults)

    async def still(self, want: dict[str, bytes]) -> None:
        """That nothing comes of what was done."""
        await asyncio.sleep(QUIET)
        assert self.force.bodies == want


def watched(folder: Path, body: Callable[[Site], Awaitable[None]], known: list[Source] | None = None) -> Site:
    """Runs `body` while the folder is watched."""
    site = Site(folder, known)

    async def run() -> None:
        task = asyncio.create_task(site.directory.run())
        try:
            await body(site)
            assert not task.done(), task
        finally:
            task.cancel()
            await asyncio.wait({task})

    asyncio.run(run())
    return site


def put(path: Path, text: str = "a") -> None:
    """Writes a file as an editor does: beside, and renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.new")
    beside.write_text(text)
    beside.replace(path)


def source_folder(parent: Path) -> Path:
    """A folder `sources` with an empty `host` in it."""
    os.umask(0o022)
    made = parent / "sources"
    (made / "host").mkdir(parents=True)
    return made
