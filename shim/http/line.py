"""A server's end of one connection: what it is doing, until when it may, and the ways that it ends."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import Callable
from enum import Enum
from math import inf

from shim.http.outbox import Outbox

# How long what a refused peer still sends is taken off its hands. Closing at once would send a reset,
# and a reset makes the peer's kernel throw away the response that was to tell it why (RFC 9112, 9.6).
LINGER_SECONDS = 2.0
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class State(Enum):
    """What a channel is doing."""

    READING = "waits for the peer's bytes, or for its turn"
    ANSWERING = "waits for a handler's response"
    STREAMING = "sends a response whose parts are still to come"
    BLOCKED = "waits for the peer to read"
    LINGERING = "said its last, and takes what the peer still sends"
    CLOSING = "said its last, and waits for it to be sent"
    GONE = "closed"

# Held back at most for the end of a turn: a usual answer, or a few small ones to who asks for many at once.
HELD_BYTES = 20_000


class Line(asyncio.Protocol):
    """The part of a channel that knows nothing of HTTP. `deadline`: when the peer must have done what it has to."""

    __slots__ = ("_drain_seconds", "_held", "_now", "_outbox", "_state", "_transport", "_write_full", "deadline")

    _transport: asyncio.Transport

    def __init__(self, clock: Callable[[], float], drain_seconds: float, outbox: Outbox) -> None:
        self._now = clock
        self._outbox = outbox
        self._held = b""
        self._drain_seconds = drain_seconds
        self._state = State.READING
        self._write_full = False
        self.deadline = inf

    def reset(self) -> None:
        """End at once; the peer's kernel is told so with a TCP RST, and nothing more is sent."""
        sock = self._transport.get_extra_info("socket")
        if sock is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self._end(State.CLOSING, inf)
        self._transport.abort()

    def flush(self) -> None:
        """Write what was held back."""
        held, self._held = self._held, b""
        if held and not self._transport.is_closing():
            self._transport.write(held)

    def _hold(self, data: bytes) -> None:
        """Write this at the end of the loop's turn; at once if it is much."""
        if len(self._held) + len(data) > HELD_BYTES:
            self._write(data)
            return
        if self._held:
            self._held += data
        else:
            self._held = data
            self._outbox.post(self)

    def _write(self, data: bytes) -> None:
        """Write now, after what was held back."""
        if self._held:
            data, self._held = self._held + data, b""
        self._transport.write(data)

    def _linger(self) -> None:
        self.flush()
        self._end(State.LINGERING, self._drain_seconds if self._write_full else LINGER_SECONDS)
        try:
            self._transport.write_eof()
        except OSError:
            self._transport.abort()  # the peer has gone, and its reset was not read yet
            return
        if not self._transport.is_reading():
            self._transport.resume_reading()

    def _close(self) -> None:
        self.flush()
        self._end(State.CLOSING, self._drain_seconds)
        self._transport.close()

    def _close_unless_asked(self) -> bool:
        """Close a connection on which nothing is under way, unless the peer has sent what was not read yet: that would
        be answered by a reset. The peer hears of the end at once, not at the end of the loop's turn."""
        sock = self._transport.get_extra_info("socket")
        if sock is not None and not self._transport.is_closing() and not _end_unless_asked(sock.fileno()):
            return False
        self._close()
        return True

    def _end(self, state: State, seconds: float) -> None:
        self._state = state
        self.deadline = self._now() + seconds
        self._give_up()

    def _give_up(self) -> None:
        """The connection ends: let go of what is under way on it."""
        raise NotImplementedError


def _end_unless_asked(fd: int) -> bool:
    """Send a FIN if there is nothing to read. One system call after the other: between them a request may come in."""
    with socket.socket(fileno=os.dup(fd)) as sock:
        try:
            if sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT):
                return False
        except BlockingIOError:
            pass
        except OSError:
            return True  # the peer has gone
        try:
            sock.shutdown(socket.SHUT_WR)
        except OSError:
            pass
        return True
