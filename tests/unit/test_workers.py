"""The agent's side of the feed, with workers that are small processes of the tests' own."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from uuid import UUID

from shim import feed
from shim.usage import Ledger
from shim.workers import Worker, Workers, _began

ENTRY = feed.Entry(1, 1, UUID(int=1), "open", "open", "required", (("/", "nova"),), "p", "10.0.0.5")
KEY = (7, bytes(32))

WORKER = """
import json, os, socket, sys, time
sock = socket.socket(socket.AF_UNIX)
for _ in range(200):
    try:
        sock.connect(sys.argv[1])
        break
    except OSError:
        time.sleep(0.01)
lines, says = sock.makefile("r"), sock.makefile("w")  # one for both loses what it read ahead
print(json.dumps({"type": "Hello", "pid": os.getpid()} | json.loads(sys.argv[2])), file=says, flush=True)
for line in lines:
    print(line, end="", flush=True)
    print(json.dumps({"type": "Done", "number": json.loads(line)["number"]}), file=says, flush=True)
"""
"""Says hello, prints what it is told, and says that it is done."""

Child = asyncio.subprocess.Process
Story = Callable[[Workers, Child], Awaitable[None]]


def tell(folder: Path, story: Story, hello: dict[str, int]) -> None:
    """A story of a worker that was there before the agent, and says so."""

    async def whole() -> None:
        path = folder / "feed"
        command = (sys.executable, "-c", WORKER, str(path), json.dumps(hello))
        child = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        (folder / "worker0.pid").write_text(f"{child.pid} {_began(child.pid)}")
        workers = Workers(
            1, os.getuid(), path, list, lambda fds: None, lambda: [ENTRY],  # type: ignore[arg-type, return-value]
            Ledger(1, lambda *_: None, {}), lambda text: None, lambda *asked: None, lambda reader: None,
        )  # fmt: skip
        workers.keys((KEY,))
        try:
            await workers.start()
            async with asyncio.timeout(20):
                await story(workers, child)
        finally:
            workers.leave()
            if child.returncode is None:
                child.kill()
                await child.wait()

    asyncio.run(whole())


async def hear(child: Child) -> feed.ToWorker:
    assert child.stdout is not None
    return feed.read_from_agent(await child.stdout.readline())


def test_keys_come_before_the_table(tmp_path: Path) -> None:
    async def story(workers: Workers, child: Child) -> None:
        assert await hear(child) == feed.Keys(2, (KEY,))
        assert await hear(child) == feed.Table(3, [ENTRY])
        worker: Worker = workers.all[0]
        number = workers.keys(((8, b"8" * 32), KEY))
        await workers.settled(number)
        assert await hear(child) == feed.Keys(number, ((8, b"8" * 32), KEY))
        assert worker.done >= number

    tell(tmp_path, story, {"protocol": feed.PROTOCOL})


def test_a_worker_of_another_version_is_ended_in_good_order(tmp_path: Path) -> None:
    async def story(workers: Workers, child: Child) -> None:
        assert child.stdout is not None
        assert await child.stdout.read() == b"", "it is told nothing that it would not understand"
        assert await child.wait() == -signal.SIGTERM

    tell(tmp_path, story, {})
