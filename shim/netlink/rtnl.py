"""rtnetlink(7) by hand, where all links or all filters are read, and where a thousand taps are changed: pyroute2 takes
kilobytes for each that is read, and a millisecond for each that is changed. What is changed seldom goes through it.

Numbers are of linux/netlink.h and linux/rtnetlink.h; all is in the host's byte order.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext, suppress

Enter = Callable[[], AbstractContextManager[None]]
"""What moves the thread into the network namespace that a socket is to be of. `nullcontext` leaves it where it is."""

NEWLINK, DELLINK, GETLINK = 16, 17, 18
NEWROUTE, DELROUTE, GETROUTE = 24, 25, 26
NEWQDISC, DELQDISC, GETQDISC = 36, 37, 38
NEWTFILTER, DELTFILTER, GETTFILTER = 44, 45, 46

REQUEST, ACK, DUMP = 0x1, 0x4, 0x300
REPLACE, EXCLUSIVE, CREATE = 0x100, 0x200, 0x400
_ERROR, _DONE = 2, 3
_INTERRUPTED = 0x10

_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_KIND_MASK = 0x3FFF  # without NLA_F_NESTED and NLA_F_NET_BYTEORDER
_RECEIVE_BYTES = 1 << 16
_EVENTS_BYTES = 8 << 20  # some ten thousand links may change at once
_SO_RCVBUFFORCE = 33
_TRIES = 5
_PATIENCE = 30.0  # seconds: another's request may hold the kernel's lock while ten thousand links go


class InterruptedDumpError(OSError):
    """What is listed changed while it was read: read it again."""


def attribute(kind: int, payload: bytes) -> bytes:
    """One attribute, padded."""
    return _ATTRIBUTE.pack(len(payload) + _ATTRIBUTE.size, kind) + payload + bytes(-len(payload) % 4)


def attributes(raw: bytes) -> dict[int, bytes]:
    """Attributes by their kind. What ends too early ends the list."""
    found = {}
    at = 0
    while at + _ATTRIBUTE.size <= len(raw):
        length, kind = _ATTRIBUTE.unpack_from(raw, at)
        if not _ATTRIBUTE.size <= length <= len(raw) - at:
            break
        found[kind & _KIND_MASK] = raw[at + _ATTRIBUTE.size : at + length]
        at += (length + 3) & ~3
    return found


def text(payload: bytes) -> str:
    """A string attribute."""
    return payload.rstrip(b"\0").decode(errors="replace")


def messages(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """(kind, flags, sequence, body) of what one recv(2) brought."""
    at = 0
    while at + _HEADER.size <= len(data):
        length, kind, flags, sequence, _ = _HEADER.unpack_from(data, at)
        if not _HEADER.size <= length <= len(data) - at:
            break
        yield kind, flags, sequence, data[at + _HEADER.size : at + length]
        at += (length + 3) & ~3


class Rtnl:
    """Questions, one after the other, in the network namespace that `enter` leads to when the first one is asked."""

    def __init__(self, enter: Enter = nullcontext) -> None:
        self._enter = enter
        self._socket: socket.socket | None = None
        self._sequence = 0

    def _open(self) -> socket.socket:
        if self._socket is None:
            with self._enter():
                self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
            self._socket.settimeout(_PATIENCE)
        return self._socket

    def _message(self, kind: int, flags: int, body: bytes) -> bytes:
        """One message, with the next sequence number."""
        self._sequence += 1
        return _HEADER.pack(_HEADER.size + len(body), kind, REQUEST | flags, self._sequence, 0) + body

    def change(self, *changes: tuple[int, int, bytes]) -> list[int]:
        """Asks for changes, (kind, flags, body) each, in one go: what became of each, an errno or 0. One that fails
        keeps none of the others from being made. Raises OSError when they cannot be asked for."""
        sock = self._open()
        first = self._sequence + 1
        sock.send(b"".join(self._message(kind, flags | ACK, body) for kind, flags, body in changes))
        outcomes: dict[int, int] = {}
        while len(outcomes) < len(changes):
            for answer, _, sequence, content in messages(sock.recv(_RECEIVE_BYTES)):
                if answer == _ERROR and sequence >= first:
                    outcomes[sequence] = -struct.unpack_from("=i", content)[0]
        return [outcomes[sequence] for sequence in sorted(outcomes)]

    def ask(self, kind: int, body: bytes) -> bytes:
        """The body of the one answer to a question. Raises OSError."""
        sock = self._open()
        sock.send(self._message(kind, 0, body))
        while True:
            for answer, _, sequence, content in messages(sock.recv(_RECEIVE_BYTES)):
                if sequence != self._sequence:
                    continue
                if answer == _ERROR:
                    _check(content, interrupted=False)
                return content

    def listed(self, kind: int, body: bytes) -> list[bytes]:
        """The bodies of all answers to a question, asked again while what is listed changes. Raises OSError."""
        for _ in range(_TRIES):
            with suppress(InterruptedDumpError):
                return list(self.dump(kind, body))
        raise OSError(errno.EBUSY, "the list changed too fast to be read")

    def dump(self, kind: int, body: bytes) -> Iterator[bytes]:
        """The bodies of all answers to a question. Raises OSError, InterruptedDumpError among them."""
        sock = self._open()
        sock.send(self._message(kind, DUMP, body))
        interrupted = False
        while True:
            for answer, marks, sequence, content in messages(sock.recv(_RECEIVE_BYTES)):
                if sequence != self._sequence:  # of a dump that was not read to its end
                    continue
                interrupted = interrupted or bool(marks & _INTERRUPTED)
                if answer in (_ERROR, _DONE):
                    _check(content, interrupted)
                    return
                yield content

    def close(self) -> None:
        """Closes the socket; the next request opens another."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def check(code: int, *passed: int) -> None:
    """Raises what the kernel answered, unless it is 0 or one of these errors."""
    if code and code not in passed:
        raise OSError(code, os.strerror(code))


def _check(end: bytes, interrupted: bool) -> None:
    """The last message begins with an errno, negated, or with none."""
    code = -struct.unpack_from("=i", end)[0] if len(end) >= 4 else 0
    if code > 0:
        raise OSError(code, os.strerror(code))
    if interrupted:
        raise InterruptedDumpError("the list changed while it was read")


def subscribe(groups: int, protocol: int = socket.NETLINK_ROUTE, enter: Enter = nullcontext) -> socket.socket:
    """A socket on which the kernel tells of changes; `groups` are bits, as of RTMGRP_*. It does not block."""
    with enter():
        sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, protocol)
    sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _EVENTS_BYTES)
    sock.bind((0, groups))
    return sock
