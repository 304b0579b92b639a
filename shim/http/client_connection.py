"""One connection to a backend: an asyncio protocol around `reply` and `client_request`.

Theory of operation. A connection serves one call at a time and is idle in between. A small answer that comes in
one segment is given to the call within `data_received`: no task, no future, no `Reply`. What comes otherwise goes
through a `Reply`; a body of a small known length is gathered and given whole, any other is given as parts while
it arrives. The connection goes back to its pool before the call's `done` is called, so the next request may be
written from there. Whatever is doubtful (bytes that nobody asked for, a body that was not sent or read to its
end, a backend that said it closes) ends the connection: an answer must never meet the wrong question.

Times are one deadline per connection, which the pool looks at in its sweep: no timer is made per request.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from math import inf
from typing import Protocol, cast

from shim.core.exchange import Request, Response
from shim.errors import BackendError
from shim.http.client_parts import HIGH_BYTES, IncomingParts
from shim.http.client_proof import Proof
from shim.http.client_upload import Upload
from shim.http.outbox import Outbox
from shim.http.reply import Reply, read_whole
from shim.http.reply_head import Malformed

# Bodies of a known length up to this are given whole.
WHOLE_BYTES = 65_536
# A reader that takes nothing for so long has forgotten the answer.
STALLED_SECONDS = 60.0
# Before the end that a backend has told, so that no request crosses it on the way.
IDLE_MARGIN_SECONDS = 0.5
_READ_BYTES = 65_536

Done = Callable[[Response | BackendError], None]


class Pool(Protocol):
    """What a connection sees of its client."""

    name: str
    read_seconds: float
    idle_seconds: float
    outbox: Outbox
    clock: Callable[[], float]

    def opened(self, connection: Connection) -> None:
        """It is made, and idle."""

    def release(self, connection: Connection) -> None:
        """It is idle again."""

    def forget(self, connection: Connection) -> None:
        """It is gone."""

    def withdraw(self, call: Call) -> None:
        """A call that waits for a connection is not wanted any more."""


class Call:
    """One request under way, or waiting for a connection."""

    __slots__ = ("_pool", "connection", "deadline", "done", "request", "wire")

    def __init__(self, pool: Pool, request: Request, wire: bytes, done: Done) -> None:
        self._pool = pool
        self.request = request
        self.wire = wire
        self.done = done
        self.connection: Connection | None = None
        self.deadline = inf

    def cancel(self) -> None:
        """Nobody waits for the answer any more, or reads what is to come of it. `done` is not called after this."""
        if self.connection is not None:
            self.connection.cancel()
        else:
            self._pool.withdraw(self)


class Connection(asyncio.Protocol):
    """See above. `deadline` is the end of what it is doing; an idle one is not to be used after it."""

    __slots__ = (
        "_before",
        "_call",
        "_gathered",
        "_held",
        "_parts",
        "_pool",
        "_proof",
        "_reply",
        "_tls",
        "_transport",
        "_upload",
        "_write_full",
        "_written",
        "deadline",
    )

    _transport: asyncio.Transport

    def __init__(self, pool: Pool, tls: bool) -> None:
        self._pool = pool
        self._tls = tls
        self._call: Call | None = None
        self._reply: Reply | None = None
        self._gathered: bytearray | None = None
        self._parts: IncomingParts | None = None
        self._upload: Upload | None = None
        self._proof: Proof | None = None
        self._write_full = False
        self._held = b""  # a request that is not given to the transport yet
        self._written = 0  # bytes given to the transport, and before the request under way
        self._before = 0
        self.deadline = inf

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if not self._tls:
            self._proof = Proof(transport.get_extra_info("socket"))
        self.deadline = self._pool.clock() + self._pool.idle_seconds
        self._pool.opened(self)

    def data_received(self, data: bytes) -> None:
        call = self._call
        if call is None:
            self.abort()  # nobody asked
        elif self._held:
            self.fail(BackendError("the backend spoke before it was asked", sent=False))
        elif self._reply is not None or self._upload is not None or call.request.method == b"HEAD":
            self._receive(call, data)
        else:
            try:
                found = read_whole(data)
            except Malformed as error:
                self._fail_on(error)
                return
            if found is None:
                self._receive(call, data)
                return
            head, body = found
            self._release(head.keep_alive, head.idle_seconds)
            call.done(Response(head.status, head.headers, body, backend=self._pool.name))

    def eof_received(self) -> None:
        """The transport closes after this."""
        self._meet_end(None)

    def connection_lost(self, error: Exception | None) -> None:
        if error is not None and self._upload is not None:
            self._read_rest()
        self._meet_end(error)
        self._pool.forget(self)

    def pause_writing(self) -> None:
        self._write_full = True
        if self._upload is not None:
            self._upload.pause()

    def resume_writing(self) -> None:
        self._write_full = False
        if self._upload is not None:
            self._upload.resume()

    # What the pool and a call say.

    @property
    def busy(self) -> bool:
        """Whether a call is under way."""
        return self._call is not None

    @property
    def silent(self) -> bool:
        """Whether a call is under way of whose answer not a byte has come."""
        return self._call is not None and self._reply is None

    def usable(self, now: float) -> bool:
        """Whether an idle connection can take a call."""
        return self.deadline > now and not self._transport.is_closing()

    def start(self, call: Call) -> None:
        """Send a call's request, on a connection that is idle."""
        self._call = call
        call.connection = self
        self._before = self._written
        self._written += len(call.wire)
        self.deadline = self._pool.clock() + self._pool.read_seconds
        request = call.request
        if request.parts is None:
            self._held = call.wire
            self._pool.outbox.post(self)
        else:
            self._transport.write(call.wire)
            self._upload = Upload(
                self._transport, request.parts, request.length, self._pool.read_seconds, self._uploaded
            )
            if self._write_full:
                self._upload.pause()

    def flush(self) -> None:
        """Send the request that was held back."""
        held, self._held = self._held, b""
        if held and not self._transport.is_closing():
            self._transport.write(held)

    def cancel(self) -> None:
        """The call under way is not wanted any more: nor is the connection, as its answer may still come."""
        parts = self._parts
        self.abort()
        if parts is not None:
            parts.finish(BackendError("the request was given up", sent=True))

    def abort(self) -> None:
        """End at once. A call under way hears nothing."""
        self._let_go()
        self._transport.abort()

    def fail(self, error: BackendError) -> None:
        """End at once. A call under way ends with `error`, and a body under way is cut off."""
        call, parts = self._call, self._parts
        self.abort()
        if parts is not None:
            parts.finish(error)
        elif call is not None:
            call.done(error)

    def check(self, now: float) -> None:
        """End if the time is over."""
        deadline = self.deadline if self._upload is None else self._upload.deadline
        if deadline <= now:
            self.fail(BackendError(f"the backend was silent for {self._pool.read_seconds:g} s", sent=True, late=True))

    # From bytes to an answer.

    def _receive(self, call: Call, data: bytes) -> None:
        if self._reply is None:
            self._reply = Reply(call.request.method == b"HEAD")
        try:
            part = self._reply.feed(data)
        except Malformed as error:
            self._fail_on(error)
            return
        if self._parts is not None:
            self._pass_on(self._parts, part)
        elif self._reply.head is not None:
            self._begin(call, self._reply, part)
        if self._reply is not None and self._reply.over:
            self._finish(call, self._reply)

    def _begin(self, call: Call, reply: Reply, part: bytes) -> None:
        """The head is there: gather a body that is small, or is here already; give the others as parts."""
        head = reply.head
        assert head is not None
        if self._gathered is not None:
            self._gathered += part
            return
        self.deadline = self._pool.clock() + self._pool.read_seconds
        if reply.over or (head.length is not None and head.length <= WHOLE_BYTES):
            self._gathered = bytearray(part)
            return
        self._parts = parts = IncomingParts(self._taken, self.abort)
        self._pass_on(parts, part)
        call.done(
            Response(head.status, head.headers, parts=parts, length=head.length, backend=self._pool.name)
        )

    def _finish(self, call: Call, reply: Reply) -> None:
        head, gathered, parts = reply.head, self._gathered, self._parts
        assert head is not None
        self._release(reply.reusable and self._upload is None, head.idle_seconds)
        if parts is not None:
            parts.finish()
        else:
            call.done(Response(head.status, head.headers, bytes(gathered or b""), backend=self._pool.name))

    def _pass_on(self, parts: IncomingParts, part: bytes) -> None:
        if not part:
            return
        parts.put(part)
        if parts.unread > HIGH_BYTES and not self._transport.is_closing():
            self._transport.pause_reading()
            self.deadline = self._pool.clock() + STALLED_SECONDS
        else:
            self.deadline = self._pool.clock() + self._pool.read_seconds

    def _taken(self) -> None:
        """The reader of the parts has taken all there were."""
        if self._resume_reading():
            self.deadline = self._pool.clock() + self._pool.read_seconds

    def _resume_reading(self) -> bool:
        if self._transport.is_closing() or self._transport.is_reading():
            return False
        self._transport.resume_reading()
        return True

    def _uploaded(self, error: BackendError | None) -> None:
        if error is not None:
            self.fail(error)
        elif self._upload is not None:
            self._written += self._upload.written
            self._upload = None
            self.deadline = self._pool.clock() + self._pool.read_seconds

    # Ways to end.

    def _let_go(self) -> None:
        self._held = b""
        if self._call is not None:
            self._call.connection = None
            self._call = None
        self._reply = self._gathered = self._parts = None
        if self._upload is not None:
            self._upload.cancel()
            self._upload = None

    def _release(self, reusable: bool, idle_seconds: int | None) -> None:
        if not reusable or self._transport.is_closing():
            self.abort()
            return
        slow = self._reply is not None
        self._let_go()
        if slow:
            self._resume_reading()
        idle = self._pool.idle_seconds
        if idle_seconds is not None:
            idle = min(idle, idle_seconds - IDLE_MARGIN_SECONDS)
        self.deadline = self._pool.clock() + idle
        self._pool.release(self)

    def _meet_end(self, error: Exception | None) -> None:
        """The backend has ended the connection: in good order where there is no error."""
        call, reply = self._call, self._reply
        if call is None:
            return
        if reply is None:
            unsent = bool(self._held) or self._proves_unsent(call, error)
            self.fail(BackendError(f"no answer: {_reason(error)}", sent=not unsent))
        elif error is not None:
            self.fail(BackendError(f"the answer was cut off: {_reason(error)}", sent=True))
        else:
            try:
                reply.end()
            except Malformed as malformed:
                self._fail_on(malformed)
            else:
                self._finish(call, reply)

    def _proves_unsent(self, call: Call, error: Exception | None) -> bool:
        if self._proof is None:
            return False
        size = len(call.wire) if call.request.parts is None else None
        return self._proof.unsent(self._before, size, error)

    def _read_rest(self) -> None:
        """A body could not be sent: the backend may have answered before it closed, and this not be read yet."""
        if self._tls:
            return
        fd = self._transport.get_extra_info("socket").fileno()
        try:
            while self._call is not None and (data := os.read(fd, _READ_BYTES)):
                self.data_received(data)
        except OSError:
            pass  # there is no more

    def _fail_on(self, malformed: Malformed) -> None:
        self.fail(BackendError(f"no proper answer: {malformed}", sent=True))


def _reason(error: Exception | None) -> str:
    if error is None:
        return "the connection was closed"
    return (isinstance(error, OSError) and error.strerror) or type(error).__name__
