"""Request bodies by length and by chunks, taken from the front of a buffer. PURE.

A body says `take(buffer)`: it removes what is its own, and gives the whole body once it is whole,
None before. Raises Refused. Chunk extensions and trailers are refused: nobody who speaks to a
metadata service sends them, and servers disagree on where they end.
"""

from __future__ import annotations

import re
from typing import Protocol

from shim.http.head import Refused

# Eight digits, leading zeros included, hold more than any limit on a body.
_SIZE_LINE = re.compile(rb"([0-9A-Fa-f]{1,8})\r\n")
_SIZE_BEGUN = re.compile(rb"(?:[0-9A-Fa-f]{1,8}\r?)?")
_LONGEST_SIZE_LINE = 10
# A body in one-byte chunks costs a hundred times its size in work. No client comes near this many.
_MOST_CHUNKS = 4096


class Body(Protocol):
    """What is still to come of one request."""

    def take(self, buffer: bytearray) -> bytes | None:
        """The whole body, or None while there is more to come. Raises Refused."""


class SizedBody:
    """A body of a known length."""

    __slots__ = ("_length",)

    def __init__(self, length: int) -> None:
        self._length = length

    def take(self, buffer: bytearray) -> bytes | None:
        """The body, once the buffer holds all of it."""
        if len(buffer) < self._length:
            return None
        body = bytes(buffer[: self._length])
        del buffer[: self._length]
        return body


class ChunkedBody:
    """A body in chunks (RFC 9112, 7.1), of at most `most` bytes when decoded."""

    __slots__ = ("_body", "_chunks", "_most", "_size")

    def __init__(self, most: int) -> None:
        self._most = most
        self._body = bytearray()
        self._chunks = 0
        self._size: int | None = None

    def take(self, buffer: bytearray) -> bytes | None:
        """The decoded body, once the last chunk has come. Raises Refused: 400, or 413 when too large."""
        while True:
            if self._size is None:
                self._size = self._take_size(buffer)
            if self._size is None or not self._take_data(buffer, self._size):
                return None
            if self._size == 0:
                return bytes(self._body)
            self._size = None

    def _take_size(self, buffer: bytearray) -> int | None:
        line = _SIZE_LINE.match(buffer)
        if line is None:
            if not _SIZE_BEGUN.fullmatch(buffer, 0, _LONGEST_SIZE_LINE):
                raise Refused(400, "malformed chunk size")
            return None
        size = int(line[1], 16)
        self._chunks += 1
        if len(self._body) + size > self._most or self._chunks > _MOST_CHUNKS:
            raise Refused(413, "request body too large, or in too many chunks")
        del buffer[: line.end()]
        return size

    def _take_data(self, buffer: bytearray, size: int) -> bool:
        ending = buffer[size : size + 2]
        if not b"\r\n".startswith(ending):
            raise Refused(400, "malformed chunk, or a trailer")
        if len(ending) < 2:
            return False
        self._body += buffer[:size]
        del buffer[: size + 2]
        return True
