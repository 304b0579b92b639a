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
from collections.abc import Awaitable, Hashable
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from shim.core.exchange import Parts, Pending, Receipt, Request, Response
from shim.http.incoming import Incoming
from shim.http.line import Line, State
from shim.http.outgoing import Outgoing
from shim.http.parse import Connection, Event, Malformed, Phase, Received
from shim.http.receipt import Delivery
from shim.http.serialize import CONTINUE, body_sent, ends_with_connection, error_response, render

if TYPE_CHECKING:
    from shim.http.server import Server

C = TypeVar("C", bound=Hashable)

READ_AHEAD = 16_384
# Requests that one peer gets answered before the others have their turn.
TURN = 16
# nginx's, for the log alone: the peer, or the server, ended the connection before there was an answer.
GIVEN_UP = 499

# Reaching an enum's member by its class takes 0.1 µs (Python 3.11), and a request goes by here ten times.
_READING = State.READING
_IDLE = Phase.IDLE


class Channel(Line, Generic[C]):
    """See above. `caller` and `key` are set by the server's welcome, before a byte is read."""

    __slots__ = (
        "_asked",
        "_begun",
        "_incoming",
        "_outgoing",
        "_parser",
        "_phase",
        "_progress",
        "_server",
        "_task",
        "caller",
        "key",
    )

    caller: C
    key: Hashable

    def __init__(self, server: Server[C]) -> None:
        super().__init__(server.clock, server.limits.drain_seconds, server.outbox)
        self._server = server
        self._parser = Connection(server.heads)
        # What the deadline is for; None when a request has come since it was set.
        self._phase: Phase | None = Phase.IDLE
        # The request that is being answered, and since when.
        self._asked: Received | None = None
        self._begun = 0.0
        # Its body, while that is still arriving, with the bytes that came since the deadline was set.
        self._incoming: Incoming | None = None
        self._progress = 0
        # Its response, while parts of it are still to be sent.
        self._outgoing: Outgoing | Delivery | None = None
        self._task: asyncio.Future[Any] | Pending | Delivery | None = None

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
        self._write(render(answer, head=False, keep_alive=False, http10=False))
        self._tell(status, len(answer.body))
        self._linger()

    def wind_down(self) -> None:
        """End now if no request is begun, else after its response."""
        if self._state is State.READING and self._parser.phase is Phase.IDLE:
            self._close()

    def time_out(self) -> None:
        """The deadline has passed."""
        if self._state is State.READING and self._parser.phase is Phase.IDLE:
            self._close()
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
        if self._server.draining and phase is _IDLE:
            self._close()
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

    def _answer(self, asked: Received) -> None:
        self._server.stats.requests += 1
        self._phase = None
        self._asked = asked
        self._begun = self._now()
        request = self._open_body(asked.request) if asked.streamed else asked.request
        if request is None:
            return
        try:
            answer = self._server.handler(self.caller, request)
            if not isinstance(answer, Response):
                self._expect(asked, answer)
                return
        except Exception as error:  # noqa: BLE001 - the boundary of one request
            answer = self._server.fail(asked.request.method, error)
        self._send(asked, answer)

    def _expect(self, asked: Received, answer: Pending | Awaitable[Response]) -> None:
        if isinstance(answer, Pending):
            if answer.response is not None:  # not by `then`, which would take turns within turns
                self._send(asked, answer.response)
                return
            self._await_response()
            self._task = answer
            answer.then(partial(self._arrived, asked))
            return
        task = asyncio.ensure_future(answer)
        self._await_response()
        self._task = task
        task.add_done_callback(partial(self._answered, asked))

    def _await_response(self) -> None:
        self._state = State.ANSWERING
        self.deadline = inf
        if self._incoming is not None:
            self._set_deadline()

    def _answered(self, asked: Received, task: asyncio.Future[Response]) -> None:
        try:
            answer = task.result()
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - as in _answer
            if self._state is not State.ANSWERING:
                return  # it was given up, by us
            answer = self._server.fail(asked.request.method, error)
        self._arrived(asked, answer)

    def _arrived(self, asked: Received, answer: Response) -> None:
        self._task = None
        if self._state is not State.ANSWERING:
            self._server.discard(answer)
            return
        self._send(asked, answer)
        self._take_turn()

    def _send(self, asked: Received, response: Response) -> None:
        try:
            last = not asked.keep_alive or response.close or self._server.draining or self._incoming is not None
            last = last or (asked.http10 and ends_with_connection(response))
            data = render(response, head=asked.head_only, keep_alive=not last, http10=asked.http10)
        except Exception as error:  # noqa: BLE001 - the boundary of one request
            self._server.discard(response)
            last = True
            response = self._server.fail(asked.request.method, error)
            data = render(response, head=asked.head_only, keep_alive=False, http10=asked.http10)
        if response.receipt is not None and self._deliver(asked, response, response.receipt, data, last):
            return
        if last or response.parts is not None:
            self._write(data)
        else:
            self._hold(data)
        if response.parts is None:
            size = len(response.body) if body_sent(response, asked.head_only) else 0
            self._tell(response.status, size, response.backend)
            self._go_after(last)
        elif body_sent(response, asked.head_only):
            self._stream(response, response.parts, asked.http10, last)
        else:
            self._server.discard(response)
            self._tell(response.status, 0, response.backend)
            self._go_after(last)

    def _go_after(self, last: bool) -> None:
        """A response was written."""
        if last:
            self._finish()
        elif self._write_full:
            self._transport.pause_reading()
            self._state = State.BLOCKED
            self.deadline = self._now() + self._drain_seconds
        else:
            self._state = _READING

    def _tell(self, status: int, body_bytes: int, backend: str = "") -> None:
        """One request is over, for who observes."""
        asked, self._asked = self._asked, None
        if self._server.observe is not None:
            self._server.report(self.caller, asked, status, body_bytes, self._begun, backend)

    # Bodies in parts.

    def _open_body(self, asked: Request) -> Request | None:
        """The request with its body's parts to come. None if it was malformed already."""
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

    def _stream(self, response: Response, parts: Parts, http10: bool, last: bool) -> None:
        self._state = State.STREAMING
        self._outgoing = Outgoing(response, parts, http10=http10, last=last)
        if self._write_full:
            self._outgoing.pause()
        self._task = self._outgoing.start(self._transport.write, self._streamed)
        self._set_deadline()

    def _streamed(self, outgoing: Outgoing, error: BaseException | None) -> None:
        if error is not None:
            self._server.discard(outgoing.response)
        if self._state is not State.STREAMING:
            return  # it was given up, by us
        if error is not None:
            self._server.fail_late(error)
            self.reset()
            return
        self._sent(outgoing)

    # A body whose last byte is held back.

    def _deliver(self, asked: Received, response: Response, receipt: Receipt, data: bytes, last: bool) -> bool:
        """Send all but the last byte. False if there is none: it is to be sent as any other."""
        if not response.body or not body_sent(response, asked.head_only):
            self._server.tell(receipt, False)
            return False
        self._state = State.STREAMING
        self._task = self._outgoing = delivery = Delivery(response, receipt, self._transport, last=last)
        self._write(data[:-1])
        self._server.keep(delivery.start(self._set_deadline, self._delivered))
        self._set_deadline()
        return True

    def _delivered(self, delivery: Delivery, error: BaseException | None) -> None:
        if not delivery.whole and self._state is State.STREAMING:
            if error is not None:
                self._server.fail_late(error)
            self.reset()  # after which it is certain whether the last byte went out
        self._server.tell(delivery.receipt, delivery.whole)
        if self._state is State.STREAMING:
            self._sent(delivery)

    def _sent(self, outgoing: Outgoing | Delivery) -> None:
        self._task = self._outgoing = None
        self._tell(outgoing.response.status, outgoing.sent, outgoing.response.backend)
        self._go_after(outgoing.last)
        self._take_turn()

    def _waits_for_body(self) -> bool:
        return self._incoming is not None and not self._waits_for_reader()

    def _waits_for_reader(self) -> bool:
        return self._outgoing is not None and self._outgoing.waits_for_reader

    def _set_deadline(self) -> None:
        """For the peer to read, or to send its body, while its request is answered."""
        self._progress = 0
        if self._waits_for_reader():
            self.deadline = self._now() + self._drain_seconds
        elif self._incoming is not None and self._transport.is_reading():
            self.deadline = self._now() + self._server.limits.body_seconds
        else:
            self.deadline = inf

    # Its end.

    def _finish(self) -> None:
        if self._parser.buffered or self._incoming is not None or not self._transport.is_reading():
            self._linger()
        else:
            self._close()

    def _give_up(self) -> None:
        if self._outgoing is not None:
            self._tell(self._outgoing.response.status, self._outgoing.sent, self._outgoing.response.backend)
            self._outgoing = None
        elif self._asked is not None:
            self._tell(GIVEN_UP, 0)
        if self._incoming is not None:
            self._incoming.cut_off()
            self._incoming = None
        if self._task is not None:
            self._task.cancel()
            self._task = None
