"""The source of Open vSwitch without an agent: the agent's side of it and its child, in the test's own care."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from uuid import UUID

from shim.core.link import Link
from shim.identity.child import Child
from tests.lab.proc import children, command_line
from tests.netns.hypervisor import uuid_of

MODULE = "shim.identity.ovs"
PATIENCE = 20.0


class Source:
    """A Child that runs, what is refreshed at each of its changes as the agent does, and what the test waits for."""

    def __init__(self, remote: str) -> None:
        self.child = Child("ovs", MODULE, remote)
        self.changes = 0
        self._woken = asyncio.Event()

    def changed(self) -> None:
        self.changes += self.child.refresh()
        self._woken.set()

    def who(self, tap: str) -> UUID | None:
        found = self.child.subject_of(Link(7, tap))
        return found.instance if found else None

    async def until(self, true: Callable[[], object], what: str) -> None:
        end = time.monotonic() + PATIENCE
        while not true():
            assert time.monotonic() < end, f"waited for {what}: {self.child.health()}"
            self._woken.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._woken.wait(), 0.05)

    async def is_of(self, tap: str, instance: UUID | None) -> None:
        await self.until(lambda: self.who(tap) == instance, f"{tap} to be {instance}'s, not {self.who(tap)}'s")

    async def well(self) -> None:
        await self.until(lambda: self.child.health() is None and self.child.known, "the source to be well")

    async def unwell(self, *words: str) -> None:
        def so() -> bool:
            health = self.child.health()
            return health is not None and all(word in health for word in words)

        await self.until(so, f"complaints of {words}")

    @property
    def pid(self) -> int:
        (pid,) = followers()
        return pid


def followers(of: int | None = None) -> list[int]:
    """The children of a process, or of this one, that follow Open vSwitch."""
    return [pid for pid in children(of) if MODULE.encode() in command_line(pid)]


def memory(pid: int | str) -> int:
    """Resident KiB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


@contextlib.asynccontextmanager
async def following(remote: str) -> AsyncIterator[Source]:
    source = Source(remote)
    task = asyncio.create_task(source.child.watch(source.changed))
    try:
        yield source
    finally:
        task.cancel()
        await asyncio.wait({task})
        assert followers() == []


def run(steps: Coroutine[None, None, None]) -> None:
    asyncio.run(steps)


def tap(number: int) -> str:
    return f"tap{number:08x}-00"


def ids(number: int, instance: UUID | None = None) -> dict[str, str]:
    port = str(UUID(int=number * 7919 + 1, version=4))
    mac = f"fa:16:3e:{number >> 16 & 255:02x}:{number >> 8 & 255:02x}:{number & 255:02x}"
    return {
        "vm-uuid": str(instance or uuid_of(number)), "iface-id": port, "attached-mac": mac, "iface-status": "active"
    }  # fmt: skip


async def quietly(call: Callable[[], object]) -> None:
    """What blocks, beside the loop."""
    await asyncio.get_running_loop().run_in_executor(None, call)
