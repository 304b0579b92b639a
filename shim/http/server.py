"""An HTTP/1.1 server on listening sockets that were made elsewhere, TCP or Unix.

It knows its peers only through `admit`: who speaks on a connection is decided when it is made, and
by nothing that is sent on it. It runs on any asyncio loop; uvloop is what it is measured with.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import struct
import time
import traceback
from collections import Counter
from collections.abc import Awaitable, Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple

from shim.core.exchange import Pending, Receipt, Request, Response
from shim.http.answering import C
from shim.http.channel import Channel
from shim.http.limits import Limits
from shim.http.outbox import Outbox
from shim.http.parse import Heads, Phase
from shim.http.serialize import error_response

log = logging.getLogger("metashim.http")

BACKLOG = 4096  # of those who wait while no worker accepts; the host's somaxconn may be less
# Connections over a limit that are told so (429, 503) at one time; the ones after that are reset.
TOLD_AT_ONCE = 16
# Failures logged per sweep: what a guest can provoke must not fill the disk.
FAILURES_LOGGED = 10
SWEEP_SECONDS = 1.0
# For the first request on a connection that was accepted just before no more are.
FRESH_SECONDS = 2.0
# Turns of the loop in which one that it has accepted gets to its channel.
TURNS_TO_MEET = 16
# A receipt's commit that outlasts its connection, when the server ends.
COMMIT_SECONDS = 0.5
# The kernel's flow table forgets a flow that is silent for long: keep the idle ones in its mind.
KEEPALIVE_IDLE_SECONDS = 30


class Credentials(NamedTuple):
    """Who connected to a Unix socket, as the kernel says. `pid` is 0 where this process cannot see that one."""

    pid: int
    uid: int
    gid: int


# struct ucred of linux/socket.h
_UCRED = struct.Struct("=iII")


@dataclass(slots=True)
class Stats:
    """What a server met since it began; each counts connections or requests."""

    accepted: int = 0
    strangers: int = 0  # not admitted
    over_instance_limit: int = 0
    over_total_limit: int = 0
    requests: int = 0
    malformed: int = 0
    timed_out: int = 0  # a begun request that did not come in time
    cut_off: int = 0  # peers that did not take their response
    failed: int = 0  # handlers that raised
    cut_short: int = 0  # responses whose parts raised, or were not of the length that was told; commits that raised


Observe = Callable[[C, Request | None, int, int, float, str], None]
"""(caller, request, status, body_bytes, seconds, backend), once a request when its answer is written, or cut off.

request     None where there was none: malformed, late, or a connection over a limit. A body in parts is left out
status      what was sent; 499 where the connection ended before there was an answer
body_bytes  of the body, handed to the peer's connection; without what frames it
seconds     from the call of the handler (0 where it was not called) until now
backend     as in Response
"""


class Server(Generic[C]):
    """Answers requests of callers of type C.

    handler    (caller, request) → Response, one that is Pending, or an awaitable of one. What it raises becomes a 500.
    admit      (peer's address, own address), as the socket has them → the caller, or None: reset at once.
               A Unix socket's peer has Credentials in place of an address
    limit_key  caller → what `limits.connections_per_instance` counts by
    clock      seconds; the system's monotonic one if None
    observe    see Observe
    """

    def __init__(
        self,
        handler: Callable[[C, Request], Response | Pending | Awaitable[Response]],
        limits: Limits,
        admit: Callable[[Any, Any], C | None],
        *,
        limit_key: Callable[[C], Hashable],
        clock: Callable[[], float] | None = None,
        observe: Observe[C] | None = None,
    ) -> None:
        loop = asyncio.get_running_loop()
        self.handler = handler
        self.limits = limits
        self.heads = Heads(limits)
        self.clock = clock or time.monotonic
        self.observe = observe
        self.call_soon = loop.call_soon
        self.outbox = Outbox(loop.call_soon)
        self.patience = _patience(limits)
        self.stats = Stats()
        self.draining = False  # each response is the last of its connection
        self.closing = False  # and who has none to come is closed
        self._admit = admit
        self._limit_key = limit_key
        self._channels: set[Channel[C]] = set()
        self._held: Counter[Hashable] = Counter()
        self._listeners: list[asyncio.Server] = []
        self._left = asyncio.Event()
        self._closings: set[asyncio.Task[None]] = set()
        self._deliveries: set[asyncio.Task[None]] = set()
        self._failures_logged = 0
        self._sweep_timer: asyncio.TimerHandle | None = None

    @property
    def connections(self) -> int:
        """Connections open now."""
        return len(self._channels)

    async def serve(self, sockets: Iterable[socket.socket]) -> None:
        """Accept on these bound sockets from now on, until `stop_accepting`. They are closed then."""
        loop = asyncio.get_running_loop()
        for sock in sockets:
            if sock.family == socket.AF_UNIX:
                listener = await loop.create_unix_server(self._channel, sock=sock, backlog=BACKLOG)
            else:
                _prepare(sock)
                listener = await loop.create_server(self._channel, sock=sock, backlog=BACKLOG)
            self._listeners.append(listener)
        if self._sweep_timer is None:
            self._sweep()

    def abort(self, match: Callable[[C], bool]) -> int:
        """Reset every connection whose caller matches, whatever it is doing. How many they were."""
        found = [channel for channel in self._channels if match(channel.caller)]
        for channel in found:
            channel.reset()
        return len(found)

    def stop_accepting(self) -> None:
        """Who connects from now on waits for another process that accepts on the same sockets."""
        for listener in self._listeners:
            listener.close()
        self._listeners = []

    async def retire(self, seconds: float) -> None:
        """Answer on, but let each response be the last of its connection. Returns once all who were idle have been told
        so, or have left, or after so many seconds.

        To close an idle connection is to lose the request that may be on its way on it.
        """
        self.draining = True
        await self._gone({channel for channel in self._channels if channel.is_idle}, seconds)

    async def drain(self, grace: float) -> None:
        """Accept no more, close what is idle, let what is begun end within `grace` seconds, then reset the rest.

        A receipt that commits still is waited for, so that it hears what became of its response.
        """
        end = time.monotonic() + grace
        self.draining = True
        self.stop_accepting()
        for _ in range(TURNS_TO_MEET):
            await asyncio.sleep(0)
        for channel in tuple(self._channels):
            if not channel.is_fresh:
                channel.wind_down()
        await self._gone({channel for channel in self._channels if channel.is_idle}, min(FRESH_SECONDS, grace))
        self.closing = True
        for channel in tuple(self._channels):
            channel.wind_down()
        if not await self._gone(self._channels, end - time.monotonic()):
            self.abort(lambda caller: True)
            await self._gone(self._channels, None)
        if self._deliveries:
            await asyncio.wait(self._deliveries, timeout=COMMIT_SECONDS)
        if self._sweep_timer is not None:
            self._sweep_timer.cancel()

    # What a channel calls.

    def welcome(self, channel: Channel[C], transport: asyncio.Transport) -> None:
        """Say who the channel's caller is, count it, and turn it away if there are too many."""
        caller = self._identify(transport)
        if caller is None:
            self.stats.strangers += 1
            channel.reset()
            return
        channel.caller, channel.key = caller, self._limit_key(caller)
        self._channels.add(channel)
        self._held[channel.key] += 1
        self.stats.accepted += 1
        self._check_limits(channel)

    def forget(self, channel: Channel[C]) -> None:
        """The channel's connection is gone."""
        if channel not in self._channels:
            return
        self._channels.remove(channel)
        self._held[channel.key] -= 1
        if not self._held[channel.key]:
            del self._held[channel.key]
        self._left.set()

    def fail(self, method: bytes, error: BaseException) -> Response:
        """Count and log a failure of ours; what to answer."""
        self.stats.failed += 1
        self._log_failure(method.decode("ascii") + " request failed", error)
        return error_response(500, "internal error")

    def fail_late(self, error: BaseException) -> None:
        """Count and log a response that was begun and cannot be ended."""
        self.stats.cut_short += 1
        self._log_failure("response cut short", error)

    def keep(self, delivery: asyncio.Task[None]) -> None:
        """Let a response with a receipt come to its end, even if its connection ends before."""
        self._deliveries.add(delivery)
        delivery.add_done_callback(self._deliveries.discard)

    def tell(self, receipt: Receipt, whole: bool) -> None:
        """A response with a receipt is over."""
        try:
            receipt.done(whole)
        except Exception as error:  # noqa: BLE001 - the receipt is a handler's
            self._log_failure("receipt not told", error)

    def discard(self, response: Response) -> None:
        """Close the parts of a response of which no more is sent, and tell the receipt of one that is not sent."""
        receipt = getattr(response, "receipt", None)
        if receipt is not None:
            self.tell(receipt, False)
        close = getattr(getattr(response, "parts", None), "aclose", None)
        if close is not None:
            task = asyncio.ensure_future(self._close(close))
            self._closings.add(task)
            task.add_done_callback(self._closings.discard)

    def fail_to_observe(self, error: Exception) -> None:
        """Log a failure of the observer's."""
        self._log_failure("request not observed", error)

    async def _close(self, close: Callable[[], Awaitable[None]]) -> None:
        try:
            await close()
        except Exception as error:  # noqa: BLE001 - the response's parts are a handler's
            self._log_failure("response not closed", error)

    def _channel(self) -> Channel[C]:
        return Channel(self)

    def _identify(self, transport: asyncio.Transport) -> C | None:
        try:
            return self._admit(_peer(transport), transport.get_extra_info("sockname"))
        except Exception as error:  # noqa: BLE001 - the boundary of one connection
            self._log_failure("connection not admitted", error)
            return None

    def _check_limits(self, channel: Channel[C]) -> None:
        over = self._held[channel.key] - self.limits.connections_per_instance
        over_total = self.connections - self.limits.connections
        if over <= 0 and over_total <= 0:
            return
        if over > 0:
            self.stats.over_instance_limit += 1
        else:
            self.stats.over_total_limit += 1
        if max(over, over_total) > TOLD_AT_ONCE:
            channel.reset()
        elif over > 0:
            channel.refuse(429, "too many connections of this instance")
        else:
            channel.refuse(503, "too many connections")

    def _log_failure(self, what: str, error: BaseException) -> None:
        """Where and of what kind: the message itself may quote the guest."""
        self._failures_logged += 1
        if self._failures_logged <= FAILURES_LOGGED:
            frames = traceback.extract_tb(error.__traceback__)
            place = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "unknown place"
            log.error("%s: %s at %s", what, type(error).__name__, place)

    async def _gone(self, channels: set[Channel[C]], seconds: float | None) -> bool:
        """Whether all of these connections ended within so many seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not self._channels.isdisjoint(channels):
                    self._left.clear()
                    await self._left.wait()
        return self._channels.isdisjoint(channels)

    def _sweep(self) -> None:
        now = self.clock()
        self._failures_logged = 0
        for channel in [channel for channel in self._channels if channel.deadline <= now]:
            channel.time_out()
        interval = min(SWEEP_SECONDS, min(self.patience.values()) / 4, self.limits.drain_seconds / 4)
        self._sweep_timer = asyncio.get_running_loop().call_later(interval, self._sweep)


def _peer(transport: asyncio.Transport) -> Any:
    peer = transport.get_extra_info("peername")
    if peer is None or isinstance(peer, tuple):
        return peer
    sock = transport.get_extra_info("socket")
    return Credentials(*_UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)))


def _patience(limits: Limits) -> dict[Phase, float]:
    return {
        Phase.IDLE: limits.idle_seconds,
        Phase.HEAD: limits.head_seconds,
        Phase.BODY: limits.body_seconds,
    }


def _prepare(sock: socket.socket) -> None:
    """Set on a listening socket: on Linux the accepted ones inherit it, and cost no system call each.

    uvloop sets TCP_NODELAY by itself; asyncio's own loop does where the socket's protocol was named.
    """
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE_SECONDS)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_IDLE_SECONDS)
