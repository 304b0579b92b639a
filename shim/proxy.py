"""One worker of the proxy: composition root of the unprivileged side.

`python -m shim.proxy JSON`, started by the agent, as root, with the listening sockets open. Everything is
imported first (the user it becomes may not be able to read the installation), then privileges are given
up for good, and only then is a connection accepted.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import resource
import signal
import socket
import sys
from pathlib import Path
from uuid import UUID

import msgspec
import uvloop

from shim import feed, log, privilege
from shim.core.exchange import Caller, Request, Response
from shim.core.policy import Access, Policy, Tokens
from shim.errors import StoreError
from shim.forward.embedded import Embedded
from shim.forward.identify import Entry, Table
from shim.http.server import Server
from shim.metadata.document import Document
from shim.metadata.faces import respond
from shim.metadata.reader import Reader

logger = logging.getLogger("shim.proxy")

AGAIN_SECONDS = 0.2
LOAD_SECONDS = 2.0
FINISH_SECONDS = 5.0
DESCRIPTORS_BESIDE_CONNECTIONS = 64

OPEN = Access.OPEN  # reaching it by its class takes 0.1 µs (Python 3.11), and every request asks
DISABLED = Response(403, ((b"content-type", b"text/plain"),), b"", close=True)
"""What a guest gets whose metadata was switched off by `--how 403`: as EC2 says it."""


class Worker:
    """Answers requests of the callers in `table`, which the agent keeps up."""

    def __init__(self, task: feed.Task) -> None:
        self.table = Table()
        self._keys: tuple[tuple[int, bytes], ...] = ()
        self._task = task
        self._reader = Reader(Path(task.store))
        self._backend = Embedded(self._reader.version, self._render)
        self.server: Server[Caller] = Server(self._handle, task.limits, self._admit, limit_key=lambda c: c.instance)
        self.finished = asyncio.Event()
        self._ends: set[asyncio.Task[None]] = set()

    def _admit(self, peer: tuple[str, int] | None, own: tuple[str, int] | None) -> Caller | None:
        return self.table.caller(peer[0]) if peer else None  # None: it has left already

    def _handle(self, caller: Caller, request: Request) -> Response:
        entry = self.table.entry(caller)
        if entry is None or entry.policy.access(caller.family) is not OPEN:
            return DISABLED
        return self._backend(caller, request)

    def _render(self, instance: UUID, request: Request) -> Response:
        try:
            _, document = self._reader.document(instance)
        except StoreError as error:
            logger.error("%s", error)
            raise
        return respond(instance, document or Document(), request)

    def take(self, message: feed.ToWorker) -> None:
        """Does what the agent says."""
        if isinstance(message, feed.Table):
            gone = self.table.replace(map(_entry, message.entries))
            self.server.abort(lambda c: (c.slot, c.generation) in gone)
            for entry in message.entries:
                self._end_refused(entry)
        elif isinstance(message, feed.Put):
            self.table.put(_entry(message.entry))
            self._end_refused(message.entry)
        elif isinstance(message, feed.Gone):
            self.table.remove(message.slot, message.generation)
            owner = (message.slot, message.generation)
            self.server.abort(lambda c: (c.slot, c.generation) == owner)
        elif isinstance(message, feed.Keys):
            self._keys = message.keys
        else:
            self.finish(message.grace)

    def _end_refused(self, entry: feed.Entry) -> None:
        """Ends the connections over the families that the kernel refuses, and those of a former owner."""
        ended = {Access.RESET, Access.DROP}
        policy = _policy(entry)
        if policy.v4 is Access.OPEN and policy.v6 is Access.OPEN:
            self.server.abort(lambda c: c.slot == entry.slot and c.generation != entry.generation)
        else:
            self.server.abort(
                lambda c: c.slot == entry.slot
                and (c.generation != entry.generation or policy.access(c.family) in ended)
            )

    def finish(self, grace: float = FINISH_SECONDS) -> None:
        """Ends in good order: what is begun is finished first."""
        if not self._ends:
            self._ends.add(asyncio.ensure_future(self._finish(grace)))

    async def _finish(self, grace: float) -> None:
        await self.server.drain(grace)
        self.finished.set()

    async def follow_agent(self) -> None:
        """Keeps the table up; without an agent it stays as it is."""
        while True:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError, ValueError):
                await self._converse()
            await asyncio.sleep(AGAIN_SECONDS)

    async def _converse(self) -> None:
        reader, writer = await asyncio.open_unix_connection(self._task.feed, limit=1 << 26)
        try:
            writer.write(feed.encode(feed.Hello(os.getpid())))
            load = asyncio.ensure_future(self._report_load(writer))
            try:
                while line := await reader.readline():
                    message = feed.read_from_agent(line)
                    self.take(message)
                    if not isinstance(message, feed.Finish):
                        writer.write(feed.encode(feed.Done(message.number)))
            finally:
                load.cancel()
        finally:
            writer.close()

    async def _report_load(self, writer: asyncio.StreamWriter) -> None:
        while True:
            await asyncio.sleep(LOAD_SECONDS)
            writer.write(feed.encode(feed.Load(self.server.connections, self.server.stats.requests)))


def _policy(entry: feed.Entry) -> Policy:
    tokens = Tokens(entry.tokens) if entry.tokens is not None else None
    return Policy(Access(entry.v4), Access(entry.v6), tokens=tokens, routes=entry.routes)


def _entry(entry: feed.Entry) -> Entry:
    return Entry(entry.slot, entry.generation, entry.instance, _policy(entry))


async def _serve(task: feed.Task) -> None:
    worker = Worker(task)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, worker.finish)
    sockets = [socket.socket(fileno=fd) for fd in task.sockets]
    follow = asyncio.ensure_future(worker.follow_agent())
    await worker.server.serve(sockets)
    gc.freeze()
    await worker.finished.wait()
    follow.cancel()


def _raise_descriptors(connections: int) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    want = connections + DESCRIPTORS_BESIDE_CONNECTIONS
    resource.setrlimit(resource.RLIMIT_NOFILE, (want, max(hard, want)))


def main(argument: str) -> None:
    """Runs a worker to its end."""
    task = msgspec.json.decode(argument, type=feed.Task)
    log.setup(task.level)
    _raise_descriptors(task.limits.connections)
    privilege.drop(task.uid, task.gid)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(task))


if __name__ == "__main__":
    main(sys.argv[1])
