"""The proxy's workers, as the agent sees them: started, told what changes, ended, and taken over after a restart.

A worker that runs already when the agent starts (the former agent was killed) is found again by the note
of its pid, and by the feed it reconnects to; its connections never notice.

A worker that is to be replaced goes on until its successor serves. From then on it is a former one: it accepts no more,
ends what it has, and is told all that changes until its end, as it answers guests still. Its note bears a number of its
own, beyond those of the places.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import msgspec

from shim import feed
from shim.core.prospect import Course, Question
from shim.inquiries import Inquiries
from shim.processes import began, ended, kill, peer_pid, running
from shim.usage import Ledger

log = logging.getLogger(__name__)

ADOPT_SECONDS = 3.0
DONE_SECONDS = 2.0
BACKOFF_SECONDS = (0.1, 0.5, 1.0, 2.0, 5.0)
UNREAD_BYTES = 1 << 24
STEADY_SECONDS = 10.0
"""A worker that ran this long did not fail at its start: the next one is started without delay."""

SUCCESSOR_SECONDS = 30.0
"""How long one that hears nothing of what changes is kept for its successor to serve."""

KILL_SECONDS = 5.0
"""What a former worker gets beyond its grace, before it is killed."""


@dataclass(eq=False)
class Worker:
    """One place for a worker, or a former one. `pid` is 0 while it is empty. `foreign`: of a version that is not spoken
    to."""

    number: int
    pid: int = 0
    restarts: int = 0
    connections: int = 0
    watches: int = 0
    requests: int = 0
    writer: asyncio.StreamWriter | None = None
    known: asyncio.Event = field(default_factory=asyncio.Event)
    process: subprocess.Popen[bytes] | None = None
    foreign: bool = False
    done: int = 0
    progress: asyncio.Condition = field(default_factory=asyncio.Condition)

    @property
    def is_ignorant(self) -> bool:
        """Whether it has had no table yet, so it serves nobody: there is none, or it just started."""
        return not self.pid or (self.process is not None and not self.known.is_set())


class Workers:
    """`listen` gives the listening sockets, `task` what a worker is started with given their descriptors, `table` is
    the whole table as of now, `ledger` keeps what they count. `failed` is told of a worker that ended unasked, `asked`
    of what guests ask (through which connection of a worker, what, how to answer), `left` of such a connection's end.
    """

    def __init__(
        self,
        count: int,
        uid: int,
        path: Path,
        listen: Callable[[], list[socket.socket]],
        task: Callable[[list[int]], feed.Task],
        table: Callable[[], list[feed.Entry]],
        ledger: Ledger,
        failed: Callable[[str], None],
        asked: Callable[[object, feed.Asked, Callable[[feed.Told], None]], None],
        left: Callable[[object], None],
    ) -> None:
        self.all = [Worker(number) for number in range(count)]
        self._uid = uid
        self._path = path
        self._listen = listen
        self._task = task
        self._table = table
        self.ledger = ledger
        self._inquiries = Inquiries()
        self._failed = failed
        self._asked = asked
        self._left = left
        self._former: list[Worker] = []
        self._keys: tuple[tuple[int, bytes], ...] = ()
        self._number = 0
        self._stopping = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._turns: set[asyncio.Task[None]] = set()
        self._replacing = asyncio.Lock()
        self._server: asyncio.Server | None = None

    def prepare(self) -> None:
        """Finds workers that run, and starts those that are missing: what they take to start goes on beside whatever is
        to be done before `start`. Until then they accept nothing."""
        for worker in self.all:
            worker.pid = running(self._note(worker.number))
            if not worker.pid:
                with contextlib.suppress(OSError):  # it is tried again
                    self._spawn(worker)

    async def start(self) -> None:
        """Opens the feed, and from then on has a worker in each place. After `prepare`."""
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()
        self._server = await asyncio.start_unix_server(self._serve, self._path, limit=feed.LINE_BYTES)
        os.chown(self._path, self._uid, -1)
        self._path.chmod(0o600)
        self._end_surplus()
        for worker in self.all:
            self._do(self._tasks, self._keep(worker))

    def _do(self, tasks: set[asyncio.Task[None]], what: Coroutine[None, None, None]) -> None:
        task = asyncio.ensure_future(what)
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    @property
    def _running(self) -> list[Worker]:
        """All who answer guests, or may."""
        return [*self.all, *self._former]

    def _note(self, number: int) -> Path:
        return self._path.with_name(f"worker{number}.pid")

    def _end_surplus(self) -> None:
        """Former workers of an earlier run, and those that had a place when there were more, are told to finish."""
        for note in self._path.parent.glob("worker*.pid"):
            number = note.stem.removeprefix("worker")
            if number.isdecimal() and int(number) >= len(self.all):
                pid = running(note)
                if not pid:
                    note.unlink()
                    continue
                worker = Worker(int(number), pid)
                self._former.append(worker)
                self._do(self._tasks, self._see_off(worker, KILL_SECONDS))

    async def _keep(self, worker: Worker) -> None:
        """One place's life: take over or start, wait for its end, again; until it is a former one's."""
        if worker.pid and worker.process is None and not await self._reconnects(worker):
            log.warning("worker %d (pid %d) does not answer: ending it", worker.number, worker.pid)
            kill(worker.pid, signal.SIGKILL)
        failures = 0
        while not self._stopping.is_set():
            if not worker.pid and not await self._started(worker):
                continue
            since = asyncio.get_running_loop().time()
            await ended(worker.pid)
            if self._stopping.is_set() or worker not in self.all:
                return
            status = self._bury(worker)
            async with worker.progress:
                worker.progress.notify_all()
            steady = status == 0 or asyncio.get_running_loop().time() - since > STEADY_SECONDS
            failures = 0 if steady else failures + 1
            if failures:
                await asyncio.sleep(BACKOFF_SECONDS[min(failures, len(BACKOFF_SECONDS)) - 1])

    def replace(self, grace: float) -> None:
        """Another worker in each place, one by one: each former one goes on until its successor serves, then ends what
        it has within `grace` seconds."""
        self._do(self._turns, self._replace(grace))

    async def _replace(self, grace: float) -> None:
        async with self._replacing:
            for worker in tuple(self.all):
                if worker.pid and not worker.foreign:
                    await self._succeed(worker, grace)

    async def _succeed(self, former: Worker, grace: float) -> None:
        log.info("worker %d (pid %d) gets a successor", former.number, former.pid)
        successor = self._give_place(former)
        self._do(self._tasks, self._keep(successor))
        # Without a successor it is better than nothing, unless it does not know of what changes.
        seconds = SUCCESSOR_SECONDS if former.foreign else None
        either = {asyncio.ensure_future(successor.known.wait()), asyncio.ensure_future(ended(former.pid))}
        try:
            done, _ = await asyncio.wait(either, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for one in either:
                one.cancel()
        if not done:
            log.error("worker %d: its successor does not start", successor.number)
        self._do(self._turns, self._see_off(former, grace))

    def _give_place(self, former: Worker) -> Worker:
        """The one whose place it is now, still to be started."""
        successor = Worker(former.number, restarts=former.restarts)
        former.number = max(worker.number for worker in self._running) + 1
        with contextlib.suppress(FileNotFoundError):
            self._note(successor.number).rename(self._note(former.number))
        self.ledger.moved(successor.number, former.number)
        self.all[successor.number] = successor
        self._former.append(former)
        return successor

    async def _see_off(self, former: Worker, grace: float) -> None:
        """Has a former worker finish, and forgets it then."""
        if former.writer is None or former.foreign:
            kill(former.pid, signal.SIGTERM)
        else:
            self._send(former, feed.Finish(grace))
        await self._end(former, grace + KILL_SECONDS)
        self._former.remove(former)
        self.ledger.ended(former.number)

    async def _end(self, worker: Worker, seconds: float) -> None:
        """Waits for its end, which it was told to come to, and brings it about after so many seconds."""
        try:
            await asyncio.wait_for(ended(worker.pid), seconds)
        except TimeoutError:
            log.warning("worker %d (pid %d) does not end: ending it", worker.number, worker.pid)
            kill(worker.pid, signal.SIGKILL)
            await ended(worker.pid)
        if worker.process:
            worker.process.wait()
        self._note(worker.number).unlink(missing_ok=True)
        worker.pid = 0
        async with worker.progress:
            worker.progress.notify_all()

    async def _reconnects(self, worker: Worker) -> bool:
        try:
            await asyncio.wait_for(worker.known.wait(), ADOPT_SECONDS)
        except TimeoutError:
            return False
        log.info("worker %d (pid %d) goes on", worker.number, worker.pid)
        return True

    async def _started(self, worker: Worker) -> bool:
        """Starts one, unless the host cannot just now (no memory, no disk, no descriptor): then a pause is made."""
        try:
            self._spawn(worker)
        except OSError as error:
            self._failed(f"worker {worker.number} cannot be started: {error}")
            await asyncio.sleep(BACKOFF_SECONDS[-1])
        return bool(worker.pid)

    def _spawn(self, worker: Worker) -> None:
        fds = [sock.fileno() for sock in self._listen()]
        command = [sys.executable, "-m", "shim.proxy", msgspec.json.encode(self._task(fds)).decode()]
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
        worker.process = subprocess.Popen(
            command, pass_fds=fds, start_new_session=True, cwd="/", stdin=subprocess.DEVNULL, env=environment
        )
        worker.pid = worker.process.pid
        self._note(worker.number).write_text(f"{worker.pid} {began(worker.pid)}")

    def _bury(self, worker: Worker) -> int | None:
        status = worker.process.wait() if worker.process else None
        self._failed(f"worker {worker.number} (pid {worker.pid}) ended unasked (status {status}): starting another")
        self._note(worker.number).unlink(missing_ok=True)
        worker.pid, worker.process, worker.connections, worker.watches = 0, None, 0, 0
        worker.restarts += 1
        self.ledger.ended(worker.number)
        worker.known.clear()
        return status

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One worker's connection; a second one of the same worker takes the first one's place."""
        pid = peer_pid(writer)
        worker = next((w for w in self._running if w.pid == pid), None)
        if worker is None:
            writer.close()
            return
        try:
            hello = feed.read_from_worker(await reader.readline())
            if not isinstance(hello, feed.Hello):
                return
            if hello.protocol != feed.PROTOCOL:
                self._replace_foreign(worker)
                return
            if worker.writer is not None:
                worker.writer.close()
            worker.writer, worker.done = writer, 0
            self._send(worker, feed.Keys(self._next(), self._keys))  # first: no guest is to be told that there are none
            self._send(worker, feed.Table(self._next(), self._table()))
            worker.known.set()
            while (line := await reader.readline()) and worker.pid == pid:  # a successor's place is not spoken for
                await self._hear(worker, writer, feed.read_from_worker(line))
        except OSError as error:
            log.warning("the feed of a worker broke: %s", type(error).__name__)
        except ValueError as error:  # nothing of ours speaks so
            log.error("a worker says what makes no sense (%s): ending it", type(error).__name__)
            kill(pid, signal.SIGKILL)
        finally:
            if worker.writer is writer:
                worker.writer = None
                async with worker.progress:
                    worker.progress.notify_all()
            self._left(writer)
            writer.close()

    def _replace_foreign(self, worker: Worker) -> None:
        """It serves on as it was told, and is ended in good order once another one serves."""
        if worker.foreign or worker in self._former:
            return
        log.warning("worker %d (pid %d) is of another version", worker.number, worker.pid)
        worker.foreign = True
        worker.known.set()
        self._do(self._turns, self._succeed(worker, KILL_SECONDS))

    async def _hear(self, worker: Worker, writer: asyncio.StreamWriter, message: feed.ToAgent) -> None:
        if isinstance(message, feed.Done):
            worker.done = message.number
            async with worker.progress:
                worker.progress.notify_all()
        elif isinstance(message, feed.Asked):
            self._asked(writer, message, partial(self._answer, worker, writer))
        elif isinstance(message, feed.Explained):
            self._inquiries.told(writer, message)
        elif isinstance(message, feed.Load):
            worker.connections, worker.requests = message.connections, message.requests
            worker.watches = message.watches
            self.ledger.hear(worker.number, message)
        elif not isinstance(message, feed.Hello):
            self.ledger.hear(worker.number, message)
            await asyncio.sleep(0)  # there may be hundreds of such lines at a time

    def _next(self) -> int:
        self._number += 1
        return self._number

    def _send(self, worker: Worker, message: feed.ToWorker) -> None:
        """A worker that does not even read what it is told is ended before what waits for it fills the memory."""
        if worker.writer is None:
            return
        worker.writer.write(feed.encode(message))
        if worker.writer.transport.get_write_buffer_size() > UNREAD_BYTES:
            log.warning("worker %d (pid %d) does not listen: ending it", worker.number, worker.pid)
            kill(worker.pid, signal.SIGKILL)

    def _answer(self, worker: Worker, writer: asyncio.StreamWriter, message: feed.Told) -> None:
        """To the very connection that asked: the next one's questions have the same numbers."""
        if worker.writer is writer:
            self._send(worker, message)

    async def explained(self, entry: feed.Entry, question: Question, latched: tuple[str, ...]) -> Course | None:
        """What a worker says that a request would get, the first that answers; None if none does."""
        for worker in self.all:
            if worker.writer is not None:
                send = partial(self._send, worker)
                found = await self._inquiries.ask(worker.writer, send, entry, question, latched)
                if found is not None:
                    return found
        return None

    def changed(self) -> int:
        """Tells all workers that the store changed."""
        return self._tell(feed.Changed(self._next()))

    def put(self, entry: feed.Entry) -> int:
        """Tells all workers of a slot's entry; the number to `settled` for."""
        return self._tell(feed.Put(self._next(), entry))

    def gone(self, slot: int, generation: int) -> int:
        """Tells all workers that a slot is nobody's any more."""
        self.ledger.gone(slot, generation)
        return self._tell(feed.Gone(self._next(), slot, generation))

    def keys(self, ring: tuple[tuple[int, bytes], ...]) -> int:
        """Tells all workers, and those to come, the keys of session tokens, the one that signs first."""
        self._keys = ring
        return self._tell(feed.Keys(self._next(), ring))

    def _tell(self, message: feed.Put | feed.Gone | feed.Keys | feed.Changed) -> int:
        for worker in self._running:
            self._send(worker, message)
        return message.number

    async def settled(self, number: int) -> None:
        """Returns when no worker runs that has not done what it was told. One that does not in time is ended: the
        next one begins with the whole table.

        One that is not connected (it just started, or the agent did) has not heard it yet: it gets the whole
        table when it connects, whose number is a later one.
        """
        await asyncio.gather(*(self._settled(worker, number) for worker in self._running))

    async def _settled(self, worker: Worker, number: int) -> None:
        pid = worker.pid
        try:
            async with asyncio.timeout(DONE_SECONDS):
                await self._caught_up(worker, pid, number)
        except TimeoutError:
            log.warning("worker %d (pid %d) does not do as told: ending it", worker.number, pid)
            kill(pid, signal.SIGKILL)
            await self._caught_up(worker, pid, number)

    async def _caught_up(self, worker: Worker, pid: int, number: int) -> None:
        async with worker.progress:
            await worker.progress.wait_for(
                lambda: worker.pid != pid or worker.is_ignorant or worker.done >= number
            )

    def renew(self) -> None:
        """The gateway namespace is another one now: the next workers get listening sockets made in it. These have
        nothing to finish, as their connections ended with the former one's link."""
        for worker in self._running:
            if worker.pid:
                kill(worker.pid, signal.SIGKILL)

    def leave(self) -> None:
        """Ends the agent's side only: the workers go on, for the next agent to find."""
        self._stopping.set()
        for task in (*self._tasks, *self._turns):
            task.cancel()

    async def stop(self, grace: float) -> None:
        """Ends all workers in good order, within `grace` seconds."""
        self.leave()
        for worker in self._running:
            worker.pid = worker.pid or running(self._note(worker.number))  # an earlier run's, not taken over yet
            if worker.pid:
                kill(worker.pid, signal.SIGTERM)
        await asyncio.gather(*(self._end(worker, grace + 1) for worker in self._running if worker.pid))
