"""A response with a receipt on its way: its last byte is held back until the peer has the rest, and until that is kept.

Theory of operation. Nobody who sends an answer can know that it arrived; but it can be known that its last byte never
left this host, and without that byte nobody takes it for whole. So all but the last byte is written first. When the
peer's kernel has acknowledged it, the receipt is asked to commit; if it agrees, the last byte follows.

No event tells that everything was acknowledged: a socket becomes writable as soon as there is room in its buffer. So
the kernel is asked (TCP_INFO), at once and then less and less often. The peer's window must have room for the byte,
too: one that the kernel took and cannot send may lie there for as long as the peer likes, and a process that ended in
that time would have used up what nobody read. With nothing in its queue the kernel does not probe a closed window;
should the peer's word that it is open again be lost, the connection's deadline ends the matter.

The last byte is written past the transport, whose own buffer is empty by then, so that the kernel's answer is known.
It went out when tcpi_bytes_sent has grown: with all before it acknowledged, nothing else could be sent, nor sent
again. That count outlives the peer's reset, which empties the queues, so that nothing in them seems to be left.
If the connection is ended from here while the byte still is with the kernel (paced, or the window shrank), TCP_CORK
keeps it there, for 0.2 s at most: else it could go out unseen between the look and the loop's close.

On a Unix socket what the kernel took is with the peer. The loops close a socket after connection_lost and not before,
so the kernel can be asked whenever a channel gives up, and no second descriptor is needed, which would keep the
connection from being closed.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import Callable
from typing import NamedTuple

from shim.core.exchange import Receipt, Response

# The first look is at once; a guest of this host has acknowledged in less than the second's time.
FIRST_PAUSE = 0.0005
LONGEST_PAUSE = 0.01

_ESTABLISHED = 1
# struct tcp_info of linux/tcp.h: tcpi_state, tcpi_unacked (in segments), tcpi_notsent_bytes, tcpi_bytes_sent,
# tcpi_snd_wnd (in Linux since 5.4).
_INFO = struct.Struct("=B23xI116xI52xQ20xI")


class Sight(NamedTuple):
    """What the kernel says of a connection. `sent` counts every byte, also those that were sent again."""

    state: int
    unacked: int
    unsent: int
    sent: int
    room: int


# Of a Unix socket: what was written is with the peer, and who has left is met by the next write.
_HANDED_OVER = Sight(_ESTABLISHED, 0, 0, 0, 1)


class Delivery:
    """The body of `response`, one byte or more, on its way.

    sent      bytes of it that were handed to the connection
    whole     whether its last byte went out; final when `over` was called, or `cancel`
    last      whether the connection ends with it
    waits_for_reader  whether it is for the peer to take what was written, not for the receipt to commit
    """

    __slots__ = (
        "_before",
        "_byte",
        "_ended",
        "_over",
        "_posted",
        "_socket",
        "_transport",
        "_turned",
        "_waiter",
        "last",
        "receipt",
        "response",
        "sent",
        "waits_for_reader",
        "whole",
    )

    def __init__(self, response: Response, receipt: Receipt, transport: asyncio.Transport, *, last: bool) -> None:
        self.response = response
        self.last = last
        self.sent = len(response.body) - 1
        self.whole = False
        self.waits_for_reader = True
        self._byte = response.body[-1:]
        self.receipt = receipt
        self._transport = transport
        self._socket = transport.get_extra_info("socket")
        self._posted = self._ended = False
        self._before = 0
        self._waiter: asyncio.Future[None] | None = None

    def start(
        self, turned: Callable[[], None], over: Callable[[Delivery, BaseException | None], None]
    ) -> asyncio.Task[None]:
        """Go on from where all but the last byte was given to the transport.

        `turned` is called when `waits_for_reader` has changed, and `over` once, when it is whole or will not be,
        with what went wrong on our side, if anything did. It is not called before the receipt's commit has ended.
        """
        self._turned = turned
        self._over = over
        task = asyncio.ensure_future(self._run())
        task.add_done_callback(self._came_to_its_end)
        return task

    def cancel(self) -> None:
        """The connection ends here, or has ended: nothing more goes out on it."""
        if self._posted and not self.whole:
            self.whole = self._was_out()
        self._ended = True
        self._wake()

    def pause(self) -> None:
        """The transport's buffer is full; it empties by itself."""

    def resume(self) -> None:
        """It is not full any more."""

    def _came_to_its_end(self, task: asyncio.Task[None]) -> None:
        self._over(self, asyncio.CancelledError() if task.cancelled() else task.exception())

    async def _run(self) -> None:
        if not await self._until(self._is_taken):
            return
        self._turn(False)
        agreed = await self.receipt.commit()
        self._turn(True)
        if agreed and await self._until(self._post) and await self._until(self._is_out):
            self.whole = True

    async def _until(self, met: Callable[[Sight], bool]) -> bool:
        """Look until it is so; False if the connection came to its end before."""
        pause = FIRST_PAUSE
        while not self._ended:
            sight = self._look()
            if met(sight):
                return True
            if sight.state != _ESTABLISHED:
                return False
            await self._sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
        return False

    def _look(self) -> Sight:
        if self._socket.family == socket.AF_UNIX:
            return _HANDED_OVER
        return Sight(*_INFO.unpack(self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO.size)))

    def _is_taken(self, sight: Sight) -> bool:
        """Whether the peer has all but the last byte, and room for that."""
        self._before = sight.sent
        left = self._transport.get_write_buffer_size() or sight.unacked or sight.unsent
        return not left and sight.room > 0 and sight.state == _ESTABLISHED

    def _post(self, sight: Sight) -> bool:
        """Hand the last byte to the kernel. A peer that has left meanwhile is not given it."""
        if sight.state != _ESTABLISHED:
            return False
        try:
            os.write(self._socket.fileno(), self._byte)
        except BlockingIOError:
            return False
        except OSError:
            self._ended = True
            return False
        self._posted = True
        self.sent += 1
        return True

    def _is_out(self, sight: Sight) -> bool:
        return sight is _HANDED_OVER or sight.sent > self._before

    def _was_out(self) -> bool:
        """Whether the last byte, which the kernel has, went out; if not, it stays."""
        try:
            if self._socket.family != socket.AF_UNIX:
                self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
            return self._is_out(self._look())
        except OSError:
            return True  # nobody knows, and it must not be read twice

    def _turn(self, waits_for_reader: bool) -> None:
        self.waits_for_reader = waits_for_reader
        if not self._ended:
            self._turned()

    async def _sleep(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        self._waiter = loop.create_future()
        timer = loop.call_later(seconds, self._wake)
        try:
            await self._waiter
        finally:
            timer.cancel()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
