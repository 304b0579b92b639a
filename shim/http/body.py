"""Request bodies by length and by chunks, taken from the front of a buffer. PURE.

A body says `take(buffer)`: it removes what is its own and gives it, part by part. Raises Refused, and
never in a call that took something, so that what is given does not depend on how the bytes were split.
Chunk extensions and trailers are refused: nobody who speaks to a metadata service sends them, and servers
disagree on where they end.
"""

from __future__ import annotations

import re
from typing import Protocol

from shim.http.head import Refused

# Eight digits, leading zeros included, hold more than any limit on a body.
_SIZE_LINE = re.compile(rb"([0-9A-Fa-f]{1,8})\r\n")
_SIZE_BEGUN = re.compile(rb"(?:[0-9A-Fa-f]{1,8}\r?)?")
_LONGEST_SIZE_LINE = 10
# A body in one-byte chunks costs a hundred times its size in work. No client comes near this many, nor,
# where large bodies are allowed, near chunks of so few bytes.
_MOST_CHUNKS = 4096
_FEW_BYTES = 64


class Body(Protocol):
    """What is still to come of one request's body. `announced`: bytes that are known to belong to it."""

    announced: int

    def take(self, buffer: bytearray) -> bytes | None:
        """The next part, b"" when the body is at its end, None while there is more to come. Raises Refused."""


class SizedBody:
    """A body of a known length."""

    __slots__ = ("_left", "announced")

    def __init__(self, length: int) -> None:
        self.announced = self._left = length

    def take(self, buffer: bytearray) -> bytes | None:
        """What the buffer holds of the body."""
        part = _cut(buffer, self._left)
        self._left -= len(part)
        return part if part or not self._left else None


class ChunkedBody:
    """A body in chunks (RFC 9112, 7.1), of at most `most` bytes when decoded."""

    __slots__ = ("_begun", "_chunks", "_last", "_left", "_most", "announced")

    def __init__(self, most: int) -> None:
        self._most = most
        self._chunks = max(_MOST_CHUNKS, most // _FEW_BYTES)
        self._left = 0
        self._begun = self._last = False
        self.announced = 0

    def take(self, buffer: bytearray) -> bytes | None:
        """What the buffer holds of one chunk's data. Raises Refused: 400, or 413 when too large."""
        while not self._left:
            if self._begun:
                if not self._take_ending(buffer):
                    return None
                if self._last:
                    return b""
            if not self._take_size(buffer):
                return None
        part = _cut(buffer, self._left)
        self._left -= len(part)
        return part or None

    def _take_size(self, buffer: bytearray) -> bool:
        line = _SIZE_LINE.match(buffer)
        if line is None:
            if not _SIZE_BEGUN.fullmatch(buffer, 0, _LONGEST_SIZE_LINE):
                raise Refused(400, "malformed chunk size")
            return False
        size = int(line[1], 16)
        self._chunks -= 1
        if self.announced + size > self._most or self._chunks < 0:
            raise Refused(413, "request body too large, or in too many chunks")
        del buffer[: line.end()]
        self.announced += size
        self._left = size
        self._begun, self._last = True, not size
        return True

    def _take_ending(self, buffer: bytearray) -> bool:
        ending = buffer[:2]
        if not b"\r\n".startswith(ending):
            raise Refused(400, "malformed chunk, or a trailer")
        if len(ending) < 2:
            return False
        del buffer[:2]
        self._begun = False
        return True


def _cut(buffer: bytearray, most: int) -> bytes:
    """At most so many bytes off the front."""
    part = bytes(buffer) if len(buffer) <= most else bytes(buffer[:most])
    del buffer[: len(part)]
    return part
