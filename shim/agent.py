"""The agent: composition root of the privileged side.

It guards taps, holds policy, keeps the proxy's workers running and serves operators. What it puts into the
kernel outlives it; nothing that a guest sends reaches it.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import shutil
import signal
import time
from collections.abc import Awaitable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

from pyroute2 import AsyncIPRoute

from shim import log as logs
from shim import systemd
from shim.config import Config
from shim.control.api import MAX_BODY, Api
from shim.control.shapes import Ailment
from shim.core.address import parse_address
from shim.core.exchange import Request, Response
from shim.core.link import Link, Place
from shim.core.policy import Policy
from shim.core.port import Port, Slots
from shim.core.verdict import Event
from shim.enrolment import Enrolment
from shim.errors import KernelError
from shim.feed import Entry, Task
from shim.held import feed_entry
from shim.host import (
    alone,
    control_group,
    default_policy,
    kv_limits,
    operator_of,
    proxy_user,
    tables_of,
    unix_socket,
)
from shim.http.limits import Limits
from shim.http.server import Server
from shim.identity.resolve import Resolver
from shim.journal import Changes, Journal
from shim.kernel import Kernel
from shim.kernel import teardown as remove_kernel_side
from shim.listeners import Listeners
from shim.metadata.store import Store
from shim.namespaces import Namespaces
from shim.netlink.links import Links
from shim.netlink.nftables import Watch
from shim.operations import AgentOperations
from shim.policies import end_overdue
from shim.processes import running
from shim.rounds import Rounds
from shim.signing import Signing
from shim.sources import sources_of, watched
from shim.tracing import Tracing
from shim.usage import Ledger
from shim.workers import Workers
from shim.writes import Writes

if TYPE_CHECKING:
    from shim.directory import Directory

log = logging.getLogger("shim.agent")

FINISH_SECONDS = 5.0
UNDO_SECONDS = 1.0
PATIENCE_SECONDS = 5.0
"""How long a start waits for identity sources that another daemon has to answer for."""

CONTROL_LIMITS = Limits(
    body_bytes=MAX_BODY, whole_bytes=MAX_BODY, idle_seconds=60, connections_per_instance=64, connections=64
)


def run(config: Config) -> int:
    """Runs the agent until it is told to stop; the exit status. Raises MetashimError when it cannot start."""
    logs.setup(config.log.level)
    with alone(config):
        asyncio.run(_main(config))
    return 0


async def _main(config: Config) -> None:
    async with AsyncIPRoute() as route:
        agent = Agent(config, route)
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        loop.add_signal_handler(signal.SIGQUIT, agent.leave, stop)
        loop.add_signal_handler(signal.SIGHUP, agent.reload)
        try:
            if await _unless(stop, agent.start()):
                systemd.notify("READY=1")
                await agent.work(stop)
        finally:
            systemd.notify("STOPPING=1")
            await agent.stop()


async def _unless(stop: asyncio.Event, starting: Coroutine[None, None, None]) -> bool:
    """Starts, unless told to stop meanwhile: then gives up, and says False."""
    start, stopping = asyncio.ensure_future(starting), asyncio.ensure_future(stop.wait())
    await asyncio.wait({start, stopping}, return_when=asyncio.FIRST_COMPLETED)
    if not start.done():
        start.cancel()
        await asyncio.wait({start})
        return False
    stopping.cancel()
    start.result()
    return True


class Agent:
    """Everything wired together; `start`, `work` until told, `stop`."""

    def __init__(self, config: Config, route: AsyncIPRoute) -> None:
        self._config = config
        self._control: Server[str] | None = None
        self._metrics: Server[str] | None = None
        self._metrics_trouble = ""
        self._tasks: list[asyncio.Task[None]] = []
        self._uid, self._gid = proxy_user(config)
        self._journal = Journal(time.time)
        self._changes = Changes(time.time)
        self._kernel = Kernel(config, route)
        self._store = Store(config.store, self._gid)
        self._policies: dict[UUID, Policy] = self._store.policies()
        end_overdue(self._store, self._policies, time.time())
        self._default = default_policy(config)
        self._table: dict[Place, Link] = {}
        self._links = Links(self._table, lambda place, undone: self._rounds.wake(place, undone))
        self._resolver = Resolver(sources_of(config, self._store))
        self._leaving = False
        addresses = {"nova": config.nova.addresses, "http": config.http.addresses}
        self._listeners = Listeners(self._kernel.gateway, config.datapath.service_ports)
        self._workers = Workers(
            config.proxy.workers, self._uid, config.feed_socket, self._listeners.all, self._worker_task,
            self._feed_table, Ledger(self._owner, addresses), self._worker_failed,
            lambda *asked: self._writes.hear(*asked), lambda reader: self._writes.gone(reader),
        )  # fmt: skip
        self._signing = Signing(config.token_keys, time.time, self._workers.keys)
        self._enrolment: Enrolment
        self._rounds: Rounds
        self._namespaces: Namespaces | None = None
        self._operations: AgentOperations
        self._tracing: Tracing
        self._writes: Writes
        self._directory: Directory | None = None
        self._writing: asyncio.Task[None] | None = None

    def _wire(self) -> Namespaces:
        """What needs to know the datapath, which is chosen as it is opened."""
        path = self._config.datapath
        self._enrolment = Enrolment(
            self._kernel.datapath, Slots(path.max_ports), self._resolver, self._table, path.taps,
            self._policy_of, self._port_changed, time.monotonic, self._kernel.lead,
        )  # fmt: skip
        self._rounds = Rounds(
            self._kernel, self._enrolment, self._resolver, self._table, self._gateway_renewed,
            lambda: namespaces.settle(),
        )  # fmt: skip
        self._namespaces = namespaces = Namespaces(
            self._kernel, self._enrolment, path.namespaces, self._resolver.namespaces, self._table, self._rounds.wake,
            tables_of(self._config), self._rounds.audit,
        )  # fmt: skip
        self._operations = AgentOperations(
            self._config, self._store, self._kernel, self._enrolment, self._resolver, self._workers, self._journal,
            self._changes, self._policies, self._default, self._signing, self._ailments, (self._uid, self._gid),
        )  # fmt: skip
        self._writes = Writes(
            self._config.store, self._store.unspent, self._enrolment.port_of, kv_limits(self._config),
            self._operations.writing, self._operations.written, time.monotonic,
        )  # fmt: skip
        self._operations.enter = namespaces.settle
        self._tracing = Tracing(self._kernel.datapath, self._enrolment.ports_of, self._enrolment.port_of)
        self._operations.tracing = self._tracing
        return namespaces

    def _policy_of(self, instance: UUID | None) -> Policy:
        return self._operations.policy_of(instance)

    async def start(self) -> None:
        """Kernel first, refusing; then the proxy; then the operators' socket, as a sign that all is up.

        What takes a process of its own begins as soon as it may, and goes on while the programs are compiled.
        """
        told = self._watch_sources()
        await self._open_kernel()
        namespaces = self._wire()
        ready = asyncio.Event()
        self._tasks.append(asyncio.ensure_future(self._links.run(ready)))
        await ready.wait()
        self._tasks.append(asyncio.ensure_future(self._watch_tables()))
        await self._know_sources(told)
        await namespaces.settle()
        await self._enrolment.adopt(self._kernel.left)
        await self._kernel.hand_over(self._enrolment.failures.keys())
        await self._kernel.datapath.prune()
        await namespaces.clean()
        self._tasks.append(asyncio.ensure_future(namespaces.run()))
        self._watch_events()
        self._signing.turn()
        self._tasks.append(asyncio.ensure_future(self._signing.run()))
        self._writing = asyncio.ensure_future(self._writes.run())
        self._operations.plan_all()
        self._watch_directory()
        await self._workers.start()
        await self._serve_operators()
        await self._serve_metrics()
        self._journal.note("agent", "started")
        log.info("ready: %d ports guarded by %s", len(self._enrolment.ports), self._kernel.datapath.name)
        gc.collect()
        gc.freeze()

    async def _open_kernel(self) -> None:
        """The kernel's side but for the ports, and workers for it. Those of an earlier run listen where nobody comes
        any more, if it is a new gateway's namespace."""
        fresh = False
        try:
            if fresh := await self._kernel.lay():
                end_workers(self._config)
            self._listeners.gather(noted(self._config))
            self._workers.prepare()
            if await self._kernel.start():
                end_workers(self._config)
                self._listeners.drop()
                self._workers.renew()
        except KernelError:
            self._leaving = not fresh  # what it could not take over goes on as it was
            raise

    def _watch_sources(self) -> asyncio.Event:
        """Begins to follow the identity sources; what tells that one of them may say something new."""
        told = asyncio.Event()

        def changed() -> None:
            told.set()
            if self._namespaces is not None:  # all is wired
                self._rounds.resolve()

        self._tasks += [asyncio.ensure_future(watched(source, changed)) for source in self._resolver.sources]
        return told

    async def _know_sources(self, told: asyncio.Event) -> None:
        """Reads the identity sources, and waits a little for those that are others' to tell: what guards the taps goes
        on as it was meanwhile. Of one that does not answer, what the kernel holds is believed until it does."""
        self._resolver.refresh()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE_SECONDS):
                while not self._resolver.known:
                    await told.wait()
                    told.clear()
                    self._resolver.refresh()

    async def work(self, stop: asyncio.Event) -> None:
        """Keeps the kernel's side as it should be, until `stop`."""
        await self._rounds.run(stop)

    def _gateway_renewed(self) -> None:
        log.error("somebody removed the namespace %s: it is made anew", self._kernel.gateway.name)
        self._listeners.drop()
        self._workers.renew()

    async def stop(self) -> None:
        """Ends this side in good order; the kernel's side stays."""
        for task in self._tasks:
            task.cancel()
        if self._leaving:
            self._workers.leave()
        else:
            await self._workers.stop(FINISH_SECONDS)
        if self._writing is not None:  # not before: what the workers finish may have to be written
            self._writing.cancel()
            await asyncio.wait({self._writing})
        if self._control is not None:
            await self._control.drain(1.0)
        await self._end_operations()
        await self._end_metrics()
        if self._namespaces is not None:
            self._namespaces.close()
        self._config.control_socket.unlink(missing_ok=True)
        self._config.feed_socket.unlink(missing_ok=True)
        self._store.close()
        log.info("stopped; what was refused stays refused (`metashim teardown` removes the kernel's side)")

    def leave(self, stop: asyncio.Event) -> None:
        """SIGQUIT: go, and leave the workers to the next agent."""
        self._leaving = True
        stop.set()

    def reload(self) -> None:
        """SIGHUP: new workers, one by one; guests that keep connections have as long as an idle one is kept."""
        self._journal.note("proxy", "each worker gets a successor")
        self._workers.replace(self._config.proxy.idle_seconds + FINISH_SECONDS)

    def _port_changed(self, port: Port, here: bool) -> None:
        self._tracing.port_changed(port, here)
        entry = feed_entry(port)
        if entry is None:
            return
        if here:
            self._workers.put(entry)
        else:
            self._workers.gone(port.slot, port.generation)

    def _owner(self, slot: int, generation: int) -> UUID | None:
        port = self._enrolment.port_of(slot, generation)
        return port.instance if port else None

    def _feed_table(self) -> list[Entry]:
        entries = (feed_entry(port) for port in self._enrolment.ports.values())
        return [entry for entry in entries if entry is not None]

    def _worker_task(self, fds: list[int]) -> Task:
        proxy = self._config.proxy
        limits = Limits(
            head_bytes=proxy.head_bytes,
            body_bytes=proxy.body_bytes,
            head_seconds=proxy.head_seconds,
            idle_seconds=proxy.idle_seconds,
            connections_per_instance=proxy.connections_per_instance,
            connections=proxy.connections,
        )
        return Task(
            sockets=fds,
            feed=str(self._config.feed_socket),
            store=str(self._config.store),
            uid=self._uid,
            gid=self._gid,
            limits=limits,
            level=self._config.log.level,
            access_rate=self._config.log.access_rate,
            request_rate=proxy.request_rate,
            request_burst=proxy.request_burst,
            tokens=self._config.tokens.mode,
            forward=self._config.forward,
            nova=self._config.nova,
            http=self._config.http,
            sources=self._config.sources,
            kv=self._config.kv,
        )

    def _worker_failed(self, text: str) -> None:
        log.error("%s", text)
        self._journal.note("proxy", text)

    async def _watch_tables(self) -> None:
        """An audit whenever somebody else changes a table of ours, or flushes them all."""
        try:
            await Watch(tables_of(self._config), self._rounds.audit).run()
        except OSError as error:
            log.warning("changes of nftables are not heard of (%s): audits see them later", error)

    def _watch_directory(self) -> None:
        path = self._config.sources.directory
        if not path:
            return
        from shim.directory import Directory  # as much as it takes, for those who have one

        known = [one for one in self._store.sources() if one.origin == "directory"]
        self._directory = directory = Directory(Path(path), self._operations.apply_directory, known)
        self._operations.freed = directory.wake
        self._tasks.append(asyncio.ensure_future(directory.run()))

    def _watch_events(self) -> None:
        asyncio.get_running_loop().add_reader(self._kernel.datapath.fd, self._note_events)

    def _note_events(self) -> None:
        for event in self._kernel.datapath.events():
            self._note_event(event)
        self._tracing.hear()

    def _note_event(self, event: Event) -> None:
        port = self._enrolment.port_of(event.slot, event.generation)
        text = f"{_end(event.source, event.source_port)} to {_end(event.destination, event.destination_port)}"
        self._journal.note(
            "refusal",
            text,
            tap=port.tap if port else f"slot {event.slot}",
            instance=port.instance if port else None,
            reason=event.verdict.label,
        )

    async def _serve_operators(self) -> None:
        api = Api(self._operations)

        def handle(who: str, request: Request) -> Awaitable[Response]:
            return api.handle(request, who)

        self._control = Server[str](
            handle, CONTROL_LIMITS, lambda peer, own: operator_of(peer[1]), limit_key=lambda who: "operators"
        )
        self._config.control_socket.unlink(missing_ok=True)  # whatever it is: the folder is ours
        await self._control.serve([unix_socket(self._config.control_socket, control_group(self._config))])

    async def _serve_metrics(self) -> None:
        if not self._config.metrics.listen:
            return
        from shim import metrics  # 2 MB resident

        address = parse_address(self._config.metrics.listen)
        found = metrics.Metrics(
            self._kernel.datapath, self._enrolment, self._workers, self._journal, self._ailments,
            lambda: self._writes.counts, instances=self._config.metrics.instances,
        )  # fmt: skip
        try:
            self._metrics = await metrics.serve(found, address, control_group(self._config))
        except OSError as error:
            self._metrics_trouble = f"nothing can be served at {address.text}: {error.strerror}"
            log.error("metrics: %s", self._metrics_trouble)

    async def _end_operations(self) -> None:
        """What operators began is done, or else undone, before the store is closed."""
        if self._control is None or not self._operations.under_way:
            return
        _, late = await asyncio.wait(self._operations.under_way, timeout=UNDO_SECONDS)
        for task in late:
            task.cancel()
        if late:
            await asyncio.wait(late)

    async def _end_metrics(self) -> None:
        if self._metrics is not None:
            await self._metrics.drain(0.2)
            if path := parse_address(self._config.metrics.listen).path:
                Path(path).unlink(missing_ok=True)

    def _ailments(self) -> list[Ailment]:
        found = self._kernel.ailments()
        found += [Ailment(f"identity source {name}", what) for name, what in self._resolver.health().items()]
        found += self._namespaces.ailments() if self._namespaces else []
        down = [worker for worker in self._workers.all if worker.writer is None]
        found += [Ailment("proxy", f"worker {worker.number} is down", "see the log") for worker in down]
        if trouble := self._signing.trouble:
            found.append(Ailment("tokens", str(trouble), trouble.hint))
        if self._writes.trouble:
            words = "until it can be written again guests get 507 or 503 for what they write or read once"
            found.append(Ailment("store", self._writes.trouble, words))
        found += self._operations.misrouted()
        found += self._operations.down()
        if self._directory is not None:
            found += [Ailment("sources", what, hint) for what, hint in self._directory.faults]
        if self._metrics_trouble:
            found.append(Ailment("metrics", self._metrics_trouble, "free it, then start the agent again"))
        found += [
            Ailment("tap", str(error), error.hint or "nothing passes there; see the log")
            for error in self._enrolment.failures.values()
        ]
        return found


def _end(address: str, port: int) -> str:
    if not port:
        return address
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def teardown(config: Config) -> None:
    """Removes all that any run put into the kernel, and the run folder. The store stays. Raises KernelError."""
    with alone(config):
        end_workers(config)
        asyncio.run(_teardown(config))
    shutil.rmtree(config.host.run_dir, ignore_errors=True)


async def _teardown(config: Config) -> None:
    async with AsyncIPRoute() as route:
        await remove_kernel_side(config, route)


def noted(config: Config) -> list[int]:
    """The pids of the workers that run, of whichever agent."""
    notes = sorted(Path(config.host.run_dir).glob("worker*.pid"))
    return [pid for pid in map(running, notes) if pid]


def end_workers(config: Config) -> None:
    """Ends the workers that an earlier agent left, at once."""
    for note in Path(config.host.run_dir).glob("worker*.pid"):
        pid = running(note)
        if pid:
            os.kill(pid, signal.SIGKILL)
        note.unlink()
