"""An HTTP/1.1 client: all the connections to one backend's address.

Calls take an idle connection, the one used last; else a new one is made; else they wait in the order they came.
It runs on any asyncio loop; uvloop is what it is measured with.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque

from shim.core.address import Address
from shim.core.exchange import Request
from shim.errors import BackendError
from shim.http.client_connection import Call, Connection, Done
from shim.http.client_request import render
from shim.http.outbox import Outbox

# Within a second a guest hears that there is no backend: this is the part of it that a call may queue.
WAIT_SECONDS = 0.9
SWEEP_SECONDS = 0.1
REMEMBERED, REMEMBERED_BYTES = 512, 2048  # requests as bytes


class Client:
    """All connections to `address`, at most `connections` of them. To be made within a running loop.

    tls              what is trusted and what we show; its certificate is checked against the address's host
    connect_seconds  for name, connection and TLS handshake together
    read_seconds     the longest silence of a backend: before its head, while a small body is gathered, between
                     parts of a large one, and while it does not take a request's body
    idle_seconds     how long a connection is kept for the next request; less where the backend says so
    name             what answers name as their backend
    """

    def __init__(
        self,
        address: Address,
        *,
        tls: ssl.SSLContext | None,
        connect_seconds: float,
        read_seconds: float,
        connections: int,
        idle_seconds: float = 4.0,
        name: str = "",
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self.address = address
        self.name = name
        self.read_seconds = read_seconds
        self.idle_seconds = idle_seconds
        self.clock = self._loop.time
        self.outbox = Outbox(self._loop.call_soon)
        self._authority = address.authority
        self._tls = tls
        self._connect_seconds = connect_seconds
        self._most = connections
        self._wires: dict[int, tuple[Request, bytes]] = {}
        self._connections: set[Connection] = set()
        self._idle: list[Connection] = []
        self._openings: set[asyncio.Task[None]] = set()
        self._waiting: deque[Call] = deque()
        self._sweep_timer: asyncio.TimerHandle | None = None
        self._closed = False
        self._empty = asyncio.Event()

    @property
    def busy(self) -> int:
        """Requests under way."""
        return sum(connection.busy for connection in self._connections)

    @property
    def waiting(self) -> int:
        """Requests that wait for a connection."""
        return len(self._waiting)

    def ask(self, request: Request, done: Done) -> Call:
        """Send a request; `done` is called once, later, with the answer or with a BackendError.

        The request's headers are sent as they are, after a Host; framing is added. An answer that comes in parts
        is to be read to its end or closed (`aclose`). Raises ValueError where the request cannot be written as HTTP,
        and RuntimeError after `close`.
        """
        call = Call(self, request, self._wire(request), done)
        # A body in parts can be read but once, so it is not risked on a connection that may just be closing.
        if request.parts is None and self._idle:
            now = self.clock()
            while self._idle:
                connection = self._idle.pop()
                if connection.usable(now):
                    connection.start(call)
                    return call
                connection.abort()
        self._wait(call)
        return call

    def _wire(self, request: Request) -> bytes:
        """A request as bytes. Who asks the same again brings the same object again."""
        known = self._wires.get(id(request))
        if known is not None:
            return known[1]
        wire = render(request, self._authority)
        if request.parts is None and len(wire) <= REMEMBERED_BYTES:
            if len(self._wires) >= REMEMBERED:
                self._wires.clear()
            self._wires[id(request)] = request, wire  # held, so that its id is no other's
        return wire

    def fail_silent(self, why: str) -> None:
        """End the requests under way without a byte of an answer: the backend is known to be frozen."""
        for connection in [connection for connection in self._connections if connection.silent]:
            connection.fail(BackendError(why, sent=True, late=True))

    async def close(self) -> None:
        """End all, at once. What is under way or waits ends with a BackendError."""
        self._closed = True
        for task in self._openings:
            task.cancel()
        while self._waiting:
            self._waiting.popleft().done(BackendError("the client was closed", sent=False))
        for connection in tuple(self._connections):
            connection.fail(BackendError("the client was closed", sent=True))
        while self._connections or self._openings:
            self._empty.clear()
            await self._empty.wait()
        if self._sweep_timer is not None:
            self._sweep_timer.cancel()

    # What a connection or a call says.

    def opened(self, connection: Connection) -> None:
        """A new connection is there."""
        self._connections.add(connection)
        self.release(connection)

    def release(self, connection: Connection) -> None:
        """A connection has nothing to do: it takes the call that waits longest."""
        if self._closed:
            connection.abort()
        elif self._waiting:
            connection.start(self._waiting.popleft())
        else:
            self._idle.append(connection)

    def forget(self, connection: Connection) -> None:
        """A connection is gone, which makes room for another."""
        self._connections.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        self._open_for_waiting()
        self._check_empty()

    def withdraw(self, call: Call) -> None:
        """A call waits no more, if it does."""
        if call in self._waiting:
            self._waiting.remove(call)

    # Waiting, and new connections.

    def _wait(self, call: Call) -> None:
        if self._closed:
            raise RuntimeError("the client was closed")
        self._waiting.append(call)
        room = self._make_room()
        call.deadline = self.clock() + (max(WAIT_SECONDS, self._connect_seconds) if room else WAIT_SECONDS)
        self._open_for_waiting()
        if self._sweep_timer is None:
            self._arm_sweep()

    def _make_room(self) -> bool:
        """Whether one more connection may be made, now or when an idle one has ended for it."""
        if len(self._connections) + len(self._openings) < self._most:
            return True
        if self._idle:
            self._idle.pop(0).abort()
            return True
        return False

    def _open_for_waiting(self) -> None:
        while not self._closed and len(self._openings) < len(self._waiting):
            if len(self._connections) + len(self._openings) >= self._most:
                return
            task = self._loop.create_task(self._open())
            self._openings.add(task)
            task.add_done_callback(self._opening_over)

    def _opening_over(self, task: asyncio.Task[None]) -> None:
        self._openings.discard(task)
        self._open_for_waiting()
        self._check_empty()

    async def _open(self) -> None:
        connection = Connection(self, tls=self._tls is not None)
        try:
            async with asyncio.timeout(self._connect_seconds):
                await self._connect(connection)
        except asyncio.CancelledError:
            self._connections.discard(connection)  # made just then: uvloop does not say that it is lost
            raise
        except TimeoutError:
            self._fail_waiting(f"no connection within {self._connect_seconds:g} s")
        except (OSError, UnicodeError) as error:
            self._fail_waiting(f"no connection: {(isinstance(error, OSError) and error.strerror) or error}")

    async def _connect(self, connection: Connection) -> None:
        address = self.address
        if address.path:
            await self._loop.create_unix_connection(lambda: connection, address.path)
        else:
            hostname = address.host if self._tls else None
            await self._loop.create_connection(
                lambda: connection, address.host, address.port, ssl=self._tls, server_hostname=hostname
            )

    def _fail_waiting(self, why: str) -> None:
        """Each failed attempt ends one call, the one that waits longest."""
        if self._waiting:
            self._waiting.popleft().done(BackendError(why, sent=False))

    def _check_empty(self) -> None:
        if not self._connections and not self._openings:
            self._empty.set()

    # Deadlines.

    def _sweep(self) -> None:
        now = self.clock()
        for connection in tuple(self._connections):
            connection.check(now)
        for call in [call for call in self._waiting if call.deadline <= now]:
            self._waiting.remove(call)
            call.done(BackendError("all connections to the backend are busy", sent=False, late=True))
        self._sweep_timer = None
        if self._connections or self._openings or self._waiting:
            self._arm_sweep()

    def _arm_sweep(self) -> None:
        interval = min(SWEEP_SECONDS, self.read_seconds / 4, self.idle_seconds / 4)
        self._sweep_timer = self._loop.call_later(interval, self._sweep)
