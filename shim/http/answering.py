"""The part of a channel that has one request answered, and sends the response: whole, in parts, or with a receipt."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Hashable
from math import inf
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from shim.core.exchange import Parts, Pending, Receipt, Request, Response
from shim.http.incoming import Incoming
from shim.http.line import Line, State
from shim.http.outgoing import Outgoing
from shim.http.parse import Phase, Received
from shim.http.receipt import Delivery
from shim.http.serialize import body_sent, ends_with_connection, render

if TYPE_CHECKING:
    from shim.http.server import Server

C = TypeVar("C", bound=Hashable)

# nginx's, for the log alone: the peer, or the server, ended the connection before there was an answer.
GIVEN_UP = 499

# Reaching an enum's member by its class takes 0.1 µs (Python 3.11).
_READING = State.READING
_ANSWERING = State.ANSWERING
_STREAMING = State.STREAMING


class Answering(Line, Generic[C]):
    """`caller` and `key` are set by the server's welcome, before a byte is read."""

    __slots__ = (
        "_asked",
        "_begun",
        "_incoming",
        "_outgoing",
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
        # What the deadline is for; None when a request has come since it was set.
        self._phase: Phase | None = Phase.IDLE
        # The request that is being answered, and since when.
        self._asked: Received | None = None
        self._begun = 0.0
        # Its body, while that is still arriving, with the bytes that came since the deadline was set.
        self._incoming: Incoming | None = None
        self._progress = 0
        # Its response, while it is not yet sent whole; and what is to be told that the connection ends.
        self._outgoing: Outgoing | Delivery | None = None
        self._task: asyncio.Future[Any] | Pending | Delivery | None = None

    def _open_body(self, asked: Request) -> Request | None:
        """The request with its body's parts to come. None if it was malformed already."""
        raise NotImplementedError

    def _take_turn(self) -> None:
        """Go on with what the peer sent behind the request, if its connection goes on."""
        raise NotImplementedError

    def _finish(self) -> None:
        """End, as the last response was written."""
        raise NotImplementedError

    # From a request to its response.

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
            answer.then(self._arrived)
            return
        task = asyncio.ensure_future(answer)
        self._await_response()
        self._task = task
        task.add_done_callback(self._answered)

    def _await_response(self) -> None:
        self._state = _ANSWERING
        self.deadline = inf
        if self._incoming is not None:
            self._set_deadline()

    def _answered(self, task: asyncio.Future[Response]) -> None:
        try:
            answer = task.result()
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - as in _answer
            if self._asked is None:
                return  # it was given up, by us
            answer = self._server.fail(self._asked.request.method, error)
        self._arrived(answer)

    def _arrived(self, answer: Response) -> None:
        self._task = None
        asked = self._asked
        if asked is None:  # it was given up
            self._server.discard(answer)
            return
        self._send(asked, answer)
        self._take_turn()

    def _send(self, asked: Received, response: Response) -> None:
        try:
            last = not asked.keep_alive or response.close or self._server.draining or self._incoming is not None
            last = last or (asked.http10 and ends_with_connection(response))
            data = render(response, asked.head_only, not last, asked.http10)
        except Exception as error:  # noqa: BLE001 - the boundary of one request
            self._server.discard(response)
            last = True
            response = self._server.fail(asked.request.method, error)
            data = render(response, asked.head_only, False, asked.http10)
        parts = response.parts
        if parts is not None:
            self._send_parts(asked, response, parts, data, last)
            return
        sent = body_sent(response, asked.head_only)
        if response.receipt is not None and self._deliver(response, response.receipt, data, last, sent):
            return
        if last:
            self._write(data)
        else:
            self._hold(data)
        self._tell(response.status, len(response.body) if sent else 0, response.backend)
        if last or self._write_full:
            self._go_after(last)
        else:  # the same, as it usually is
            self._state = _READING

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
        observe = self._server.observe
        if observe is None:
            return
        request, seconds = (None, 0.0) if asked is None else (asked.request, self._now() - self._begun)
        try:
            observe(self.caller, request, status, body_bytes, seconds, backend)
        except Exception as error:  # noqa: BLE001 - who observes must not break who is observed
            self._server.fail_to_observe(error)

    # A response in parts.

    def _send_parts(self, asked: Received, response: Response, parts: Parts, head: bytes, last: bool) -> None:
        self._write(head)
        if not body_sent(response, asked.head_only):
            self._server.discard(response)
            self._tell(response.status, 0, response.backend)
            self._go_after(last)
            return
        self._state = _STREAMING
        self._outgoing = outgoing = Outgoing(response, parts, http10=asked.http10, last=last)
        if self._write_full:
            outgoing.pause()
        self._task = outgoing.start(self._transport.write, self._streamed)
        self._set_deadline()

    def _streamed(self, outgoing: Outgoing, error: BaseException | None) -> None:
        if error is not None:
            self._server.discard(outgoing.response)
        if self._state is not _STREAMING:
            return  # it was given up, by us
        if error is not None:
            self._server.fail_late(error)
            self.reset()
            return
        self._sent(outgoing)

    # A response whose last byte is held back.

    def _deliver(self, response: Response, receipt: Receipt, data: bytes, last: bool, has_body: bool) -> bool:
        """Send all but the last byte. False if there is none: it is to be sent as any other."""
        if not response.body or not has_body:
            self._server.tell(receipt, False)
            return False
        self._state = _STREAMING
        self._task = self._outgoing = delivery = Delivery(response, receipt, self._transport, last=last)
        # In two segments: Linux acknowledges the second at once, and one alone on a kept connection after 40 ms.
        half = len(data) // 2
        self._write(data[:half])
        self._write(data[half:-1])
        self._server.keep(delivery.start(self._set_deadline, self._delivered))
        self._set_deadline()
        return True

    def _delivered(self, delivery: Delivery, error: BaseException | None) -> None:
        if not delivery.whole and self._state is _STREAMING:
            if error is not None:
                self._server.fail_late(error)
            self.reset()  # after which it is certain whether the last byte went out
        self._server.tell(delivery.receipt, delivery.whole)
        if self._state is _STREAMING:
            self._sent(delivery)

    def _sent(self, outgoing: Outgoing | Delivery) -> None:
        self._task = self._outgoing = None
        self._tell(outgoing.response.status, outgoing.sent, outgoing.response.backend)
        self._go_after(outgoing.last)
        self._take_turn()

    # Its times, and its end.

    def _waits_for_reader(self) -> bool:
        return self._outgoing is not None and self._outgoing.waits_for_reader

    def _waits_for_body(self) -> bool:
        return self._incoming is not None and not self._waits_for_reader()

    def _set_deadline(self) -> None:
        """For the peer to read, or to send its body, while its request is answered."""
        self._progress = 0
        if self._waits_for_reader():
            self.deadline = self._now() + self._drain_seconds
        elif self._incoming is not None and self._transport.is_reading():
            self.deadline = self._now() + self._server.limits.body_seconds
        else:
            self.deadline = inf

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
