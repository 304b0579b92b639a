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

import pytest

from shim import feed
from shim.processes import began
from shim.usage import Ledger
from shim.workers import Worker, Workers

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
    if "number" in json.loads(line):
        print(json.dumps({"type": "Done", "number": json.loads(line)["number"]}), file=says, flush=True)
time.sleep(60)
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
        (folder / "worker0.pid").write_text(f"{child.pid} {began(child.pid)}")
        workers = Workers(
            1, os.getuid(), path, list, lambda fds: None, lambda: [ENTRY],  # type: ignore[arg-type, return-value]
            Ledger(lambda *_: None, {}), lambda text: None, lambda *asked: None, lambda reader: None,
        )  # fmt: skip
        workers.keys((KEY,))
        try:
            workers.prepare()
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


def test_a_worker_of_another_version_is_ended_in_good_order_once_its_successor_serves(tmp_path: Path) -> None:
    async def story(workers: Workers, child: Child) -> None:
        assert child.stdout is not None
        successor = await another(workers, child)
        assert child.returncode is None
        successor.known.set()
        assert await child.stdout.read() == b"", "it is told nothing that it would not understand"
        assert await child.wait() == -signal.SIGTERM

    tell(tmp_path, story, {})


def test_without_a_successor_one_that_hears_nothing_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shim.workers.SUCCESSOR_SECONDS", 0.1)

    async def story(workers: Workers, child: Child) -> None:
        assert await child.wait() == -signal.SIGTERM

    tell(tmp_path, story, {})


def test_a_former_worker_is_told_what_changes_until_its_end(tmp_path: Path) -> None:
    async def story(workers: Workers, child: Child) -> None:
        await hear(child)
        await hear(child)
        workers.replace(3.0)
        successor = await another(workers, child)
        assert (tmp_path / "worker1.pid").read_text().split()[0] == str(child.pid), "for the next agent to know it"
        number = workers.put(ENTRY)
        await workers.settled(number)
        assert await hear(child) == feed.Put(number, ENTRY)
        successor.known.set()
        assert await hear(child) == feed.Finish(3.0)
        workers.put(ENTRY)
        assert isinstance(await hear(child), feed.Put)
        child.kill()
        async with asyncio.timeout(5):
            while (tmp_path / "worker1.pid").exists():
                await asyncio.sleep(0.01)
        assert workers.all == [successor]

    tell(tmp_path, story, {"protocol": feed.PROTOCOL})


def test_a_former_worker_that_does_not_listen_keeps_nothing_from_being_settled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shim.workers.DONE_SECONDS", 0.1)

    async def story(workers: Workers, child: Child) -> None:
        await hear(child)
        workers.replace(3.0)
        await another(workers, child)
        child.send_signal(signal.SIGSTOP)
        await workers.settled(workers.put(ENTRY))
        assert await child.wait() == -signal.SIGKILL

    tell(tmp_path, story, {"protocol": feed.PROTOCOL})


async def another(workers: Workers, child: Child) -> Worker:
    """The successor, as soon as it has the place. No process of these tests can be one: it never starts."""
    async with asyncio.timeout(5):
        while workers.all[0].pid == child.pid:
            await asyncio.sleep(0.01)
    return workers.all[0]
