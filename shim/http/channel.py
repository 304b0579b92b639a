"""One connection of a server: an asyncio protocol around `parse` and `serialize`.

Theory of operation. A channel does one thing at a time: it reads, or one request is being answered,
or the peer has to take what was written, or it is ending. A handler's response that is at hand is
written at the end of the loop's turn, with those of other channels (see Outbox), or at once where it is
much. While a request is answered elsewhere the channel goes on listening, to learn that the peer has gone,
and stops after READ_AHEAD bytes. Times are kept as one deadline per channel, which the server looks at in
its sweep: no timer is made per request.

A request with a large body is asked as soon as its head is read: while it is answered, what is listened to
is its body, handed on through an Incoming, and READ_AHEAD counts from the body's end. A response in parts
is sent by the one task that a channel ever has, and so is one with a receipt (see Delivery). What can no longer
be told with a status ends in a reset, so that nobody takes a part of a message for the whole.

    READING ──request──▶ ANSWERING ──response──▶ READING, or BLOCKED while the peer does not read
                         ANSWERING ──in parts, or with a receipt──▶ STREAMING ──its end──▶ READING, or BLOCKED
       any ──last response──▶ LINGERING or CLOSING ──▶ GONE
"""

from __future__ import annotations

import asyncio
from math import inf
from typing import TYPE_CHECKING, cast

from shim.core.exchange import Request
from shim.http.answering import Answering, C
from shim.http.incoming import Incoming
from shim.http.line import State
from shim.http.parse import Connection, Event, Malformed, Phase, Received
from shim.http.serialize import CONTINUE, error_response, render

if TYPE_CHECKING:
    from shim.http.server import Server

READ_AHEAD = 16_384
# Requests that one peer gets answered before the others have their turn.
TURN = 16

# Reaching an enum's member by its class takes 0.1 µs (Python 3.11), and a request goes by here ten times.
_READING = State.READING
_IDLE = Phase.IDLE


class Channel(Answering[C]):
    """See above."""

    __slots__ = ("_parser",)

    def __init__(self, server: Server[C]) -> None:
        super().__init__(server)
        self._parser = Connection(server.heads)

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.deadline = self._now() + self._server.limits.head_seconds
        self._server.welcome(self, self._transport)

    def data_received(self, data: bytes) -> None:
        if self._state is _READING:
            self._parser.feed(data)
            self._go_on()
        elif self._state is State.ANSWERING or self._state is State.STREAMING:
            self._parser.feed(data)
            if self._incoming is not None:
                self._hand_on(self._incoming, len(data))
            if self._incoming is None and self._parser.buffered > READ_AHEAD:
                self._transport.pause_reading()

    def eof_received(self) -> None:
        """The peer is done: so are we, once what was written is sent. An answer under way is given up."""
        if self._state is State.STREAMING:
            self.reset()
        else:
            self.flush()  # the transport closes after this
            self._end(State.CLOSING, self._drain_seconds)

    def connection_lost(self, error: Exception | None) -> None:
        self._end(State.GONE, inf)
        self._server.forget(self)

    def pause_writing(self) -> None:
        self._write_full = True
        if self._outgoing is not None:
            self._outgoing.pause()
            self._set_deadline()

    def resume_writing(self) -> None:
        self._write_full = False
        if self._state is State.BLOCKED:
            self._yield_turn()
        elif self._outgoing is not None:
            self._outgoing.resume()
            self._set_deadline()

    # What the server calls.

    def refuse(self, status: int, reason: str) -> None:
        """Answer without asking the handler, and end."""
        answer = error_response(status, reason)
        self._write(render(answer, False, False, False))
        self._tell(status, len(answer.body))
        self._linger()

    @property
    def is_idle(self) -> bool:
        """Whether no request is begun."""
        return self._state is State.READING and self._parser.phase is Phase.IDLE

    @property
    def is_fresh(self) -> bool:
        """Whether no request has come yet."""
        return not self._begun

    def wind_down(self) -> None:
        """End now if no request is begun or has arrived, else after its response."""
        if self.is_idle:
            self._close_unless_asked()

    def time_out(self) -> None:
        """The deadline has passed."""
        if self.is_idle:
            self._close_unless_asked()
        elif self._state is State.READING or self._waits_for_body():
            self._server.stats.timed_out += 1
            self._turn_away(408, "request not complete in time")
        else:
            self._server.stats.cut_off += 1
            self.reset()

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
        if self._server.closing and phase is _IDLE and self._close_unless_asked():
            return
        if phase is not self._phase:
            self._phase = phase
            self.deadline = self._now() + self._server.patience[phase]
        if not self._transport.is_reading():
            self._transport.resume_reading()

    def _meet(self, event: Event) -> None:
        if isinstance(event, Received):
            self._answer(event)
        elif isinstance(event, Malformed):
            self._meet_malformed(event)
        else:
            self._write(CONTINUE)

    def _meet_malformed(self, event: Malformed) -> None:
        self._server.stats.malformed += 1
        self._turn_away(event.status, event.reason)

    def _turn_away(self, status: int, reason: str) -> None:
        if self._outgoing is None:
            self.refuse(status, reason)
        else:
            self.reset()

    # Bodies in parts.

    def _open_body(self, asked: Request) -> Request | None:
        incoming = self._incoming = Incoming(self._parser, self._transport, self._set_deadline)
        if not self._hand_on(incoming, 0):
            return None
        incoming.listen()
        return Request(asked.method, asked.path, asked.query, asked.headers, parts=incoming, length=asked.length)

    def _hand_on(self, incoming: Incoming, arrived: int) -> bool:
        """Give the handler what came of the body in the last bytes; False if it was malformed."""
        event = incoming.pull()
        if isinstance(event, Malformed):
            self._meet_malformed(event)
            return False
        if event is not None:
            self._incoming = None
            incoming.end()
        self._progress += arrived
        went_on = self._progress >= self._server.limits.whole_bytes
        if went_on or self._incoming is None or not self._transport.is_reading():
            self._set_deadline()
        return True

    # Its end.

    def _finish(self) -> None:
        if self._parser.buffered or self._incoming is not None or not self._transport.is_reading():
            self._linger()
        else:
            self._close()
