"""A worker and the agent that it follows, over a real socket, in the loop that workers run."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import uvloop
from msgspec.structs import replace

from shim import feed
from shim.backends import Backends
from shim.core.ask import Outcome, Ready
from shim.core.exchange import Caller
from shim.core.policy import Family
from shim.metadata.store import Store
from shim.proxy import Worker
from tests.unit.live_site import A
from tests.unit.test_dry_run import TASK

TURNS = 10
GUEST = Caller(1, 1, A, Family.V4)


class Agent:
    """What an agent is to a worker: it listens, says what it knows, and may die at any moment."""

    def __init__(self, path: Path) -> None:
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._listener.setblocking(False)

    async def __aenter__(self) -> Agent:
        loop = asyncio.get_running_loop()
        self._connection, _ = await asyncio.wait_for(loop.sock_accept(self._listener), 5)
        self._listener.close()
        hello = feed.read_from_worker(await self.heard())
        assert isinstance(hello, feed.Hello)
        await loop.sock_sendall(self._connection, feed.encode(feed.Table(1, [feed.Entry(1, 1, A, "open", "open")])))
        assert await self.heard() == feed.encode(feed.Done(1))
        return self

    async def __aexit__(self, *_: object) -> None:
        self.die()

    async def heard(self) -> bytes:
        return await asyncio.wait_for(asyncio.get_running_loop().sock_recv(self._connection, 1 << 16), 5)

    def die(self) -> None:
        self._connection.close()


@asynccontextmanager
async def working(folder: Path) -> AsyncIterator[Worker]:
    Store(folder / "m.db").close()
    task = replace(TASK, store=str(folder / "m.db"), feed=str(folder / "feed"))
    worker = Worker(task, Backends(task.forward, task.nova, task.http))
    follow = asyncio.ensure_future(worker.follow_agent())
    try:
        yield worker
        assert not follow.done(), "it follows whatever agent there will be"
    finally:
        follow.cancel()
        with suppress(asyncio.CancelledError):
            await follow


def test_what_guests_ask_while_the_agent_dies_is_unavailable_and_the_next_one_is_followed(tmp_path: Path) -> None:
    """The worker's side closes by the first thing that it says, and the worker finds out some turns of its loop later:
    all who ask until then ask in vain, too."""

    async def whole() -> None:
        async with working(tmp_path) as worker:
            async with Agent(tmp_path / "feed") as agent:
                found: list[Outcome] = []
                agent.die()
                for _ in range(TURNS):
                    worker._asks.ask(GUEST, Ready(), found.append)
                    worker.take(feed.Explain(2, feed.Entry(1, 1, A, "open", "open"), feed.Question("/")))
                    await asyncio.sleep(0)
            assert [one.fate for one in found] == ["unavailable"] * TURNS
            (tmp_path / "feed").unlink()
            async with Agent(tmp_path / "feed") as agent:
                worker._asks.ask(GUEST, Ready(), found.append)
                asked = feed.read_from_worker(await agent.heard())
                assert isinstance(asked, feed.Asked) and asked.ask == Ready()

    uvloop.run(asyncio.wait_for(whole(), 20))
