"""A backend's answers: bytes in, head and body out. PURE.

Theory of operation. `read_whole` is the short way: bytes that are exactly one answer with a Content-Length.
All else goes through a `Reply`, one for each request, which is fed what arrives and gives back the bytes of the
body. The grammar, here and in `reply_head`, is that of RFC 9112 without its leniencies (folded lines, a bare LF,
two lengths, a length and a coding): what a guest is given must have one reading.
"""

from __future__ import annotations

import re
from typing import Protocol

from shim.http.head import END
from shim.http.reply_head import Head, Malformed, read_field, read_head

HEAD_BYTES = 65_536
# Nobody sends more than a 103 and a 100; each costs a head's work and says nothing to a guest.
INTERIM_HEADS = 8
# A size of 15 digits is more than any disk holds. Extensions are few and short where they are used at all.
SIZE_LINE_BYTES = 1024
TRAILER_BYTES = 16_384

_STATUS_LINE_BEGINS = b"HTTP/1."
_BARE_BREAK = re.compile(rb"\x00|\r[^\n]|(?<!\r)\n")
_SIZE_LINE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[\t -~\x80-\xff]*)?\r\n")


def read_whole(data: bytes) -> tuple[Head, bytes] | None:
    """Head and body, if `data` is one final answer with a Content-Length and not a byte more; else None.

    Not for answers to HEAD. Raises Malformed.
    """
    end = data.find(END) + len(END)
    if end < len(END) or end > HEAD_BYTES:
        return None
    head = read_head(data[:end])
    if head.length != len(data) - end or head.bodiless:
        return None
    return head, data[end:]


# Bodies.


class _Body(Protocol):
    """What is still to come of one answer. `over`: nothing is."""

    over: bool

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        """The decoded bytes that `data` brings, and those of `data` after the body's end. Raises Malformed."""

    def end(self) -> None:
        """The connection has ended. Raises Malformed if that cut the body off."""


class _NoBody:
    over = True

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        return b"", data

    def end(self) -> None:
        pass


class _SizedBody:
    __slots__ = ("_left", "over")

    def __init__(self, length: int) -> None:
        self._left = length
        self.over = not length

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        part, rest = data[: self._left], data[self._left :]
        self._left -= len(part)
        self.over = not self._left
        return part, rest

    def end(self) -> None:
        if not self.over:
            raise Malformed("the body ended short of its Content-Length")


class _BodyUntilEnd:
    __slots__ = ("over",)

    def __init__(self) -> None:
        self.over = False

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        return data, b""

    def end(self) -> None:
        self.over = True


class _ChunkedBody:
    """RFC 9112, 7.1. Extensions and trailers are read strictly, and dropped."""

    __slots__ = ("_held", "_left", "_step", "over")

    def __init__(self) -> None:
        self._held = b""  # the begin of a line that is not whole yet
        self._left = 0  # bytes to come of the chunk under way
        self._step = self._size
        self.over = False

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        data = self._held + data
        parts: list[bytes] = []
        at = -1
        to = 0
        while to != at and not self.over:
            at = to
            to = self._step(data, at, parts)
        rest = data[to:]
        self._held = b"" if self.over else rest
        return b"".join(parts), rest if self.over else b""

    def end(self) -> None:
        if not self.over:
            raise Malformed("the body ended before its last chunk")

    # The steps: each takes what it can of `data` from `at` on, and says where it stopped.

    def _size(self, data: bytes, at: int, parts: list[bytes]) -> int:
        line = _SIZE_LINE.match(data, at, at + SIZE_LINE_BYTES)
        if line is None:
            if len(data) - at >= SIZE_LINE_BYTES or b"\n" in data[at:]:
                raise Malformed("malformed chunk size")
            return at
        self._left = int(line[1], 16)
        self._step = self._data if self._left else self._trailer
        return line.end()

    def _data(self, data: bytes, at: int, parts: list[bytes]) -> int:
        part = data[at : at + self._left]
        if part:
            parts.append(part)
            self._left -= len(part)
        if not self._left:
            self._step = self._data_end
            return self._data_end(data, at + len(part), parts)
        return at + len(part)

    def _data_end(self, data: bytes, at: int, parts: list[bytes]) -> int:
        ending = data[at : at + 2]
        if not b"\r\n".startswith(ending):
            raise Malformed("a chunk is not of the size it says")
        if len(ending) < 2:
            return at
        self._step = self._size
        return at + 2

    def _trailer(self, data: bytes, at: int, parts: list[bytes]) -> int:
        if data.startswith(b"\r\n", at):
            self.over = True
            return at + 2
        end = data.find(END, at, at + TRAILER_BYTES)
        if end < 0:
            if len(data) - at >= TRAILER_BYTES:
                raise Malformed("trailers too large")
            return at
        for line in data[at:end].split(b"\r\n"):
            read_field(line)
        self.over = True
        return end + len(END)


# The long way.


class Reply:
    """The answer to one request, as it arrives. `head` is None until the final head is there.

    `over`: it is whole. `surplus`: the backend sent more than it. `began`: a byte of it has come.
    """

    __slots__ = ("_body", "_buffer", "_head_only", "_interim", "_scanned", "began", "head", "over", "surplus")

    def __init__(self, head_only: bool) -> None:
        self._head_only = head_only
        self._buffer = bytearray()
        self._scanned = 0
        self._interim = 0
        self._body: _Body | None = None
        self.head: Head | None = None
        self.began = self.over = self.surplus = False

    @property
    def reusable(self) -> bool:
        """Whether another request may follow on the connection, now that this answer is over."""
        head = self.head
        if head is None or not self.over or self.surplus or not head.keep_alive:
            return False
        # A 204 that says it has a body may have one on its way: it would be read as the next answer.
        liar = head.status == 204 and (head.length or head.chunked)
        return not liar and not isinstance(self._body, _BodyUntilEnd)

    def feed(self, data: bytes) -> bytes:
        """The bytes of the body that `data` brings. Raises Malformed."""
        self.began = True
        body = self._body
        if body is None:
            self._buffer += data
            self._body = body = self._read_heads()
            if body is None:
                return b""
            data = bytes(self._buffer)
            self._buffer.clear()
        part, rest = body.feed(data)
        self.over = body.over
        self.surplus = self.surplus or bool(rest)
        return part

    def end(self) -> None:
        """The connection has ended in good order: a body without a length is whole. Raises Malformed."""
        if self._body is None:
            raise Malformed("the connection ended before a whole head" if self.began else "no answer")
        self._body.end()
        self.over = True

    def _read_heads(self) -> _Body | None:
        """What is to follow the final head, once that is there."""
        while (raw := self._take_head()) is not None:
            head = read_head(raw)
            if head.status == 101:
                raise Malformed("switched protocols, unasked")
            if head.status >= 200:
                self.head = head
                return _body(head, self._head_only)
            self._interim += 1
            if self._interim > INTERIM_HEADS:
                raise Malformed("too many interim answers")
        return None

    def _take_head(self) -> bytes | None:
        buffer = self._buffer
        begun = buffer[: len(_STATUS_LINE_BEGINS)]
        if not _STATUS_LINE_BEGINS.startswith(begun):
            raise Malformed("not an HTTP/1 answer")
        end = buffer.find(END, self._scanned, HEAD_BYTES)
        if end < 0:
            if len(buffer) >= HEAD_BYTES:
                raise Malformed("head too large")
            if _BARE_BREAK.search(buffer, self._scanned):
                raise Malformed("NUL or bare line end in the head")
            self._scanned = max(0, len(buffer) - len(END) + 1)
            return None
        raw = bytes(buffer[: end + len(END)])
        del buffer[: end + len(END)]
        self._scanned = 0
        return raw


def _body(head: Head, head_only: bool) -> _Body:
    """RFC 9112, 6.3."""
    if head_only or head.bodiless:
        return _NoBody()
    if head.chunked:
        return _ChunkedBody()
    return _BodyUntilEnd() if head.length is None else _SizedBody(head.length)
