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
import time
from collections.abc import Coroutine
from pathlib import Path
from uuid import UUID

import msgspec
import uvloop

from shim import access, feed, log, privilege
from shim.access import AccessLog
from shim.asks import Asks
from shim.backends import Backends
from shim.catalog import Catalog
from shim.core.exchange import Caller, Request, Response, Subject
from shim.core.policy import Access, Auto, Composition, Policy, Tokens
from shim.core.prospect import Course, Prospect
from shim.dry_run import DryRun
from shim.embedded import Embedded
from shim.forward.allowance import Allowance, Concurrency
from shim.forward.identify import Entry, Table
from shim.forward.routes import Routes
from shim.forward.subjects import Subjects
from shim.forward.token import Keys
from shim.http.server import Server
from shim.metadata.reader import Reader
from shim.overlay import Overlay
from shim.service import Service
from shim.tally import Tally

logger = logging.getLogger("shim.proxy")

AGAIN_SECONDS = 0.2
AT_FIRST_SECONDS = 0.02
"""The same, as long as guests wait because it knows nothing yet."""
LOAD_SECONDS = 2.0
FINISH_SECONDS = 5.0
IDLE_SECONDS = 1.0
"""For a last request on each connection that is idle when a worker is told to end, before it accepts no more."""
UNKNOWN_SECONDS = 600.0
"""How long a worker waits for an agent to say whose guests are whose: until then it accepts nothing. The unit gives an
agent that compiles at its first start as long."""
DISMISSALS = 5
"""An agent that has so often nothing to say to a worker does not know it, and has others."""
DESCRIPTORS_BESIDE_CONNECTIONS = 64


class Worker:
    """Answers requests of the callers in `table`, which the agent keeps up. To be made within the running loop."""

    def __init__(self, task: feed.Task, backends: Backends) -> None:
        self.table = Table()
        self.finished = asyncio.Event()
        self.knows = asyncio.Event()
        self._task = task
        self._reader = Reader(Path(task.store))
        self._catalog = Catalog(self._reader, task.sources.composition, task.sources.limit_bytes)
        self._asks = Asks()
        self._embedded = Embedded(self._catalog, self._asks, self._still, task.limits.body_bytes)
        self._tally = Tally()
        self._access = AccessLog(access.sink(), task.access_rate)
        self._backends = backends
        self._overlay = Overlay(self._catalog, self._embedded.hand)
        self._opened = backends.open()
        self._service = self._wired()
        self._dry_run = DryRun(
            task, self.table, self._service, self._embedded, self._overlay, self._catalog, self._opened,
            backends.upstreams,
        )  # fmt: skip
        self.server: Server[Caller] = Server(
            self._service.handle, task.limits, self._admit, limit_key=lambda c: c.instance, observe=self._observe
        )
        self._end: asyncio.Task[None] | None = None
        self._dismissals = 0
        self._feed: asyncio.StreamWriter | None = None  # to the agent, while it listens

    def _wired(self) -> Service:
        task = self._task
        return Service(
            self.table,
            Tokens(task.tokens),
            Routes(task.forward.routes),
            Allowance(task.request_rate, task.request_burst),
            Concurrency(task.forward.requests_per_instance),
            Subjects(self._reader.version, self._documented),
            self._embedded,
            self._opened,
            self._overlay,
        )

    def _still(self, caller: Caller, path: bytes) -> Entry | Response:
        return self._service.still(caller, path)

    def _admit(self, peer: tuple[str, int] | None, own: tuple[str, int] | None) -> Caller | None:
        return self.table.caller(peer[0]) if peer else None  # None: it has left already

    def _documented(self, instance: UUID) -> Subject:
        document = self._catalog.document(instance)
        return Subject(instance, document.project_id or "", document.address or "")

    def _observe(
        self, caller: Caller, request: Request | None, status: int, size: int, seconds: float, backend: str
    ) -> None:
        entry = self.table.entry(caller)
        outcome = self._service.token_outcome(entry, request, status, backend)
        self._tally.request(caller, status, size, seconds, backend, outcome)
        if request is None:
            self._tally.malformed()
        project = entry.project if entry is not None else ""
        has_token = outcome == "with"
        self._access.request(time.monotonic(), caller, project, request, status, size, seconds, backend, has_token)

    def take(self, message: feed.ToWorker) -> None:
        """Does what the agent says."""
        if isinstance(message, feed.Table):
            gone = self.table.replace(map(_entry, message.entries))
            self._forget(gone)
            for entry in message.entries:
                self._changed(entry)
            self._embedded.changed()  # who knows what was written while there was no agent to say so
            self.knows.set()
        elif isinstance(message, feed.Put):
            self.table.put(_entry(message.entry))
            self._changed(message.entry)
        elif isinstance(message, feed.Gone):
            self.table.remove(message.slot, message.generation)
            self._forget(frozenset({(message.slot, message.generation)}))
        elif isinstance(message, feed.Keys):
            self._service.keys = Keys(message.keys)
        elif isinstance(message, feed.Changed):
            self._embedded.changed()
        elif isinstance(message, feed.Told):
            self._asks.told(message)
        elif isinstance(message, feed.Explain):
            self._explain(message)
        else:
            self.retire(message.grace)

    def _explain(self, message: feed.Explain) -> None:
        try:
            found = self._dry_run.explain(message, _entry(message.entry))
        except Exception as error:  # the boundary of one question, which an operator asks
            logger.exception("a request cannot be explained")
            words = f"the worker failed at this ({type(error).__name__}): see its log"
            found = feed.Explained(message.number, Course((), Prospect("unknown", words)))
        self._say(found)

    def _forget(self, owners: frozenset[tuple[int, int]]) -> None:
        """These owners of slots are gone."""
        self.server.abort(lambda c: (c.slot, c.generation) in owners)
        for slot, generation in owners:
            self._tally.forget(slot, generation)
            self._access.forget(slot)

    def _changed(self, entry: feed.Entry) -> None:
        self._end_refused(entry)
        self._embedded.recheck(_entry(entry))

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

    async def accept(self, sockets: list[socket.socket]) -> None:
        """Answers who connects, unless it is to end already."""
        if self._end is None:
            await self.server.serve(sockets)

    def finish(self) -> None:
        """SIGTERM: ends in good order. Nobody may accept for a while afterwards, so that while is kept short."""
        self._begin_to_end(self._finish(IDLE_SECONDS, FINISH_SECONDS - IDLE_SECONDS))

    def retire(self, grace: float) -> None:
        """There is a successor: leaves all new connections to it, and has time for those that are idle."""
        self.server.stop_accepting()
        self._embedded.end_waits()
        self._begin_to_end(self._finish(max(0, grace - FINISH_SECONDS), FINISH_SECONDS))

    def _begin_to_end(self, end: Coroutine[None, None, None]) -> None:
        if self._end is not None:
            self._end.cancel()
        self._end = asyncio.ensure_future(end)

    async def _finish(self, idle: float, grace: float) -> None:
        await self.server.retire(idle)
        self.server.stop_accepting()
        self._embedded.end_waits()
        await self.server.drain(grace)
        await self._backends.close()
        if self._feed is not None:
            await self._tell(self._feed)  # the last of what was counted
        self.finished.set()

    async def follow_agent(self) -> None:
        """Keeps the table up; without an agent it stays as it is."""
        while self._dismissals < DISMISSALS:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError, ValueError):
                await self._converse()
            await asyncio.sleep(AGAIN_SECONDS if self.knows.is_set() else AT_FIRST_SECONDS)
        logger.warning("the agent does not know this worker: it ends")
        self.finish()

    async def _converse(self) -> None:
        reader, writer = await asyncio.open_unix_connection(self._task.feed, limit=1 << 26)
        self._feed = writer
        self._dismissals += 1
        try:
            self._say(feed.Hello(os.getpid(), feed.PROTOCOL))
            self._asks.connected(self._write)
            report = asyncio.ensure_future(self._report(writer))
            try:
                while line := await reader.readline():
                    self._dismissals = 0
                    message = feed.read_from_agent(line)
                    self.take(message)
                    if not isinstance(message, feed.Finish | feed.Told | feed.Explain):
                        self._say(feed.Done(message.number))
            finally:
                report.cancel()
        finally:
            self._feed = None
            self._asks.disconnected()
            writer.close()

    async def _report(self, writer: asyncio.StreamWriter) -> None:
        self._tally.again()
        while True:
            await asyncio.sleep(LOAD_SECONDS)
            await self._tell(writer)

    async def _tell(self, writer: asyncio.StreamWriter) -> None:
        """Tells the agent what was counted, a line at a time; without the agent it is told the next one."""
        self._access.flush()
        stats = self.server.stats
        turned_away = stats.over_instance_limit + stats.over_total_limit
        with contextlib.suppress(OSError):
            watches = len(self._embedded.watches)
            load = feed.Load(self.server.connections, stats.requests, stats.accepted, turned_away, watches)
            self._say(load)
            for message in self._tally.changed():
                self._say(message)
                await writer.drain()
            self._say(self._health())
            await writer.drain()

    def _say(self, message: feed.ToAgent) -> None:
        self._write(feed.encode(message))

    def _write(self, line: bytes) -> None:
        """To the agent, if it listens. It may be gone and `_converse` not know yet: uvloop's transports, which closed
        by themselves then, raise for a write. What was asked and not told is unavailable as soon as it knows."""
        if self._feed is not None and not self._feed.is_closing():
            self._feed.write(line)

    def _health(self) -> feed.Backends:
        return feed.Backends(
            [
                feed.AddressHealth(upstream.name, state.text, state.healthy, state.why)
                for upstream in self._backends.upstreams
                for state in upstream.states
            ]
        )


def _policy(entry: feed.Entry) -> Policy:
    tokens = Tokens(entry.tokens) if entry.tokens is not None else None
    composition = Composition(entry.composition) if entry.composition is not None else None
    # How it is disabled then, and when it is ready, is the agent's to know.
    auto = Auto(until=entry.until, on_read=entry.on_read) if entry.on_read or entry.until is not None else None
    return Policy(
        Access(entry.v4), Access(entry.v6), tokens=tokens, routes=entry.routes, composition=composition,
        closed=entry.closed, auto=auto,
    )  # fmt: skip


def _entry(entry: feed.Entry) -> Entry:
    return Entry(
        entry.slot, entry.generation, entry.instance, _policy(entry), entry.project, entry.address, entry.name,
        entry.flavor,
    )  # fmt: skip


async def _serve(task: feed.Task, backends: Backends) -> None:
    worker = Worker(task, backends)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, worker.finish)
    sockets = [socket.socket(fileno=fd) for fd in task.sockets]
    follow = asyncio.ensure_future(worker.follow_agent())
    try:
        await asyncio.wait_for(worker.knows.wait(), UNKNOWN_SECONDS)  # before that, every guest is a stranger
    except TimeoutError:
        worker.finish()
    else:
        await worker.accept(sockets)
        gc.freeze()
    await worker.finished.wait()
    follow.cancel()


def _raise_descriptors(connections: int) -> None:
    """So many connections of guests and to backends, each a descriptor."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    want = connections + DESCRIPTORS_BESIDE_CONNECTIONS
    resource.setrlimit(resource.RLIMIT_NOFILE, (want, max(hard, want)))


def main(argument: str) -> None:
    """Runs a worker to its end."""
    task = msgspec.json.decode(argument, type=feed.Task)
    log.setup(task.level)
    backends = Backends(task.forward, task.nova, task.http)
    backends.read()
    _raise_descriptors(task.limits.connections + backends.most_connections)
    privilege.drop(task.uid, task.gid)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(task, backends))


if __name__ == "__main__":
    main(sys.argv[1])
