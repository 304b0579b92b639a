"""One connection of a server: an asyncio protocol around `parse` and `serialize`.

Theory of operation. A channel does one thing at a time: it reads, or one request is being answered,
or the peer has to take what was written, or it is ending. A handler's response that is at hand is
written at once, within the call that brought the request. While a request is answered elsewhere the
channel goes on listening, to learn that the peer has gone, and stops after READ_AHEAD bytes. Times are
kept as one deadline per channel, which the server looks at in its sweep: no timer is made per request.

    READING ──request──▶ ANSWERING ──response──▶ READING, or BLOCKED while the peer does not read
       any ──last response──▶ LINGERING or CLOSING ──▶ GONE
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Hashable
from enum import Enum
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Generic, TypeVar, cast

from shim.core.exchange import Response
from shim.http.parse import Connection, Event, Malformed, Phase, Received
from shim.http.serialize import CONTINUE, error_response, render

if TYPE_CHECKING:
    from shim.http.server import Server

C = TypeVar("C", bound=Hashable)

READ_AHEAD = 16_384
# Requests that one peer gets answered before the others have their turn.
TURN = 16
# How long what a refused peer still sends is taken off its hands. Closing at once would send a reset,
# and a reset makes the peer's kernel throw away the response that was to tell it why (RFC 9112, 9.6).
LINGER_SECONDS = 2.0
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class State(Enum):
    """What a channel is doing."""

    READING = "waits for the peer's bytes, or for its turn"
    ANSWERING = "waits for a handler's response"
    BLOCKED = "waits for the peer to read"
    LINGERING = "said its last, and takes what the peer still sends"
    CLOSING = "said its last, and waits for it to be sent"
    GONE = "closed"


# Reaching an enum's member by its class takes 0.1 µs (Python 3.11), and a request goes by here ten times.
_READING = State.READING
_IDLE = Phase.IDLE


class Channel(asyncio.Protocol, Generic[C]):
    """See above. `caller` and `key` are set by the server's welcome, before a byte is read."""

    __slots__ = (
        "_parser",
        "_phase",
        "_server",
        "_state",
        "_task",
        "_transport",
        "_write_full",
        "caller",
        "deadline",
        "key",
    )

    caller: C
    key: Hashable
    _transport: asyncio.Transport

    def __init__(self, server: Server[C]) -> None:
        self._server = server
        self._parser = Connection(server.heads)
        # What the deadline is for; None when a request has come since it was set.
        self._phase: Phase | None = Phase.IDLE
        self._state = State.READING
        self._task: asyncio.Future[Response] | None = None
        self._write_full = False
        self.deadline = inf

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.deadline = self._server.clock() + self._server.limits.head_seconds
        self._server.welcome(self, self._transport)

    def data_received(self, data: bytes) -> None:
        if self._state is _READING:
            self._parser.feed(data)
            self._go_on()
        elif self._state is State.ANSWERING:
            self._parser.feed(data)
            if self._parser.buffered > READ_AHEAD:
                self._transport.pause_reading()

    def eof_received(self) -> None:
        """The peer is done: so are we, once what was written is sent. An answer under way is given up."""
        self._end(State.CLOSING, self._server.limits.drain_seconds)

    def connection_lost(self, error: Exception | None) -> None:
        self._end(State.GONE, inf)
        self._server.forget(self)

    def pause_writing(self) -> None:
        self._write_full = True

    def resume_writing(self) -> None:
        self._write_full = False
        if self._state is State.BLOCKED:
            self._yield_turn()

    # What the server calls.

    def refuse(self, status: int, reason: str) -> None:
        """Answer without asking the handler, and end."""
        answer = error_response(status, reason)
        self._transport.write(render(answer, head=False, keep_alive=False, http10=False))
        self._linger()

    def reset(self) -> None:
        """End at once; the peer's kernel is told so with a TCP RST, and nothing more is sent."""
        sock = self._transport.get_extra_info("socket")
        if sock is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self._end(State.CLOSING, inf)
        self._transport.abort()

    def wind_down(self) -> None:
        """End now if no request is begun, else after its response."""
        if self._state is State.READING and self._parser.phase is Phase.IDLE:
            self._close()

    def time_out(self) -> None:
        """The deadline has passed."""
        if self._state is not State.READING:
            self._server.stats.cut_off += 1
            self.reset()
        elif self._parser.phase is Phase.IDLE:
            self._close()
        else:
            self._server.stats.timed_out += 1
            self.refuse(408, "request not complete in time")

    # From bytes to an answer.

    def _go_on(self) -> None:
        self._state = _READING
        for _ in range(TURN):
            event = self._parser.next_event()
            if event is None:
                self._await_more()
                return
            self._meet(event)
            if self._state is not _READING:
                return
        self._transport.pause_reading()
        self._yield_turn()

    def _yield_turn(self) -> None:
        """Go on after the others, and not within a call of the transport's, which may not bear to be closed."""
        self._state = State.READING
        self.deadline = inf
        self._server.call_soon(self._take_turn)

    def _take_turn(self) -> None:
        if self._state is State.READING:
            self._go_on()

    def _await_more(self) -> None:
        phase = self._parser.phase
        if self._server.draining and phase is _IDLE:
            self._close()
            return
        if phase is not self._phase:
            self._phase = phase
            self.deadline = self._server.clock() + self._server.patience[phase]
        if not self._transport.is_reading():
            self._transport.resume_reading()

    def _meet(self, event: Event) -> None:
        if isinstance(event, Received):
            self._answer(event)
        elif isinstance(event, Malformed):
            self._server.stats.malformed += 1
            self.refuse(event.status, event.reason)
        else:
            self._transport.write(CONTINUE)

    def _answer(self, asked: Received) -> None:
        self._server.stats.requests += 1
        self._phase = None
        try:
            answer = self._server.handler(self.caller, asked.request)
            if not isinstance(answer, Response):
                self._expect(asked, asyncio.ensure_future(answer))
                return
        except Exception as error:  # noqa: BLE001 - the boundary of one request
            answer = self._server.fail(asked.request.method, error)
        self._send(asked, answer)

    def _expect(self, asked: Received, task: asyncio.Future[Response]) -> None:
        self._state = State.ANSWERING
        self.deadline = inf
        self._task = task
        task.add_done_callback(partial(self._answered, asked))

    def _answered(self, asked: Received, task: asyncio.Future[Response]) -> None:
        self._task = None
        try:
            answer = task.result()
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - as in _answer
            if self._state is not State.ANSWERING:
                return  # it was given up, by us
            answer = self._server.fail(asked.request.method, error)
        if self._state is State.ANSWERING:
            self._send(asked, answer)
        if self._state is State.READING:
            self._go_on()

    def _send(self, asked: Received, response: Response) -> None:
        try:
            last = not asked.keep_alive or response.close or self._server.draining
            data = render(response, head=asked.head_only, keep_alive=not last, http10=asked.http10)
        except Exception as error:  # noqa: BLE001 - the boundary of one request
            last = True
            failure = self._server.fail(asked.request.method, error)
            data = render(failure, head=asked.head_only, keep_alive=False, http10=asked.http10)
        self._transport.write(data)
        if last:
            self._finish()
        elif self._write_full:
            self._transport.pause_reading()
            self._state = State.BLOCKED
            self.deadline = self._server.clock() + self._server.limits.drain_seconds
        else:
            self._state = _READING

    # Ways to end.

    def _finish(self) -> None:
        if self._parser.buffered or not self._transport.is_reading():
            self._linger()
        else:
            self._close()

    def _linger(self) -> None:
        self._end(State.LINGERING, self._server.limits.drain_seconds if self._write_full else LINGER_SECONDS)
        try:
            self._transport.write_eof()
        except OSError:
            self._transport.abort()  # the peer has gone, and its reset was not read yet
            return
        if not self._transport.is_reading():
            self._transport.resume_reading()

    def _close(self) -> None:
        self._end(State.CLOSING, self._server.limits.drain_seconds)
        self._transport.close()

    def _end(self, state: State, seconds: float) -> None:
        self._state = state
        self.deadline = self._server.clock() + seconds
        if self._task is not None:
            self._task.cancel()
            self._task = None
