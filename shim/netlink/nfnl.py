"""Messages of nfnetlink by hand: nftables' changes and questions, nflog's packets.

nft(8) reads every chain of every table before it does anything, which takes 250 ms where there are ten thousand
taps; so whole rulesets go through it, and what changes with one port is written here. Numbers are of
linux/netfilter/nfnetlink.h, nf_tables.h and nfnetlink_log.h; attributes' numbers are in the network's byte order.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from contextlib import nullcontext

from shim.netlink import rtnl

NETLINK_NETFILTER = 12
NFTABLES, ULOG = 10, 4  # subsystems
FAMILIES = {"inet": 1, "arp": 3, "netdev": 5, "bridge": 7}  # linux/netfilter.h
FAMILY_NETDEV = FAMILIES["netdev"]

REQUEST, ACK, DUMP = 0x1, 0x4, 0x300
CREATE, APPEND = 0x400, 0x800
_ERROR, _DONE, _BATCH_BEGIN, _BATCH_END = 2, 3, 16, 17
_INTERRUPTED = 0x10

_HEADER = struct.Struct("=IHHII")
_GENERIC = struct.Struct(">BBH")
_NESTED = 0x8000
_RECEIVE_BYTES = 1 << 18
_SO_SNDBUFFORCE, _SO_RCVBUFFORCE = 32, 33
_BUFFER_BYTES = 8 << 20
_PATIENCE = 30.0
TRIES = 5

GENERIC_BYTES = _GENERIC.size


def attribute(kind: int, payload: bytes) -> bytes:
    """One attribute, padded."""
    return rtnl.attribute(kind, payload)


def nest(kind: int, *inside: bytes) -> bytes:
    """An attribute that holds others."""
    return rtnl.attribute(kind | _NESTED, b"".join(inside))


def text(kind: int, value: str) -> bytes:
    """An attribute that holds a string."""
    return rtnl.attribute(kind, value.encode() + b"\0")


def number(kind: int, value: int) -> bytes:
    """An attribute that holds 32 bits, signed where below zero."""
    return rtnl.attribute(kind, (value & 0xFFFFFFFF).to_bytes(4, "big"))


def items(raw: bytes) -> Iterator[bytes]:
    """The payloads of a list of attributes that are all of one kind."""
    at = 0
    while at + 4 <= len(raw):
        length = int.from_bytes(raw[at : at + 2], "little" if _LITTLE else "big")
        if not 4 <= length <= len(raw) - at:
            break
        yield raw[at + 4 : at + length]
        at += (length + 3) & ~3


_LITTLE = struct.pack("=H", 1) == b"\1\0"


class Socket:
    """Requests, one after the other, in the network namespace that `enter` leads to when the first one is made.

    `family` is that of the tables which are changed, read or asked for.
    """

    def __init__(self, family: int = FAMILY_NETDEV, enter: rtnl.Enter = nullcontext) -> None:
        self._family = family
        self._enter = enter
        self._socket: socket.socket | None = None
        self._sequence = 0

    def _open(self) -> socket.socket:
        if self._socket is None:
            with self._enter():
                self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER)
            for option in (_SO_SNDBUFFORCE, _SO_RCVBUFFORCE):
                self._socket.setsockopt(socket.SOL_SOCKET, option, _BUFFER_BYTES)
            self._socket.settimeout(_PATIENCE)
            self._socket.bind((0, 0))
        return self._socket

    def close(self) -> None:
        """Closes the socket; the next request opens another."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def detach(self) -> socket.socket:
        """The socket itself, for what comes without being asked for."""
        made, self._socket = self._open(), None
        return made

    def message(self, kind: int, flags: int, body: bytes, family: int | None = None, resource: int = 0) -> bytes:
        """One message, with the next sequence number."""
        self._sequence += 1
        generic = _GENERIC.pack(self._family if family is None else family, 0, resource)
        length = _HEADER.size + len(generic) + len(body)
        return _HEADER.pack(length, kind, REQUEST | flags, self._sequence, 0) + generic + body

    def transaction(self, changes: Sequence[tuple[int, int, bytes]]) -> None:
        """Carries out changes of nftables, (message, flags, body) each: all or none. Raises OSError."""
        sock = self._open()
        batch = [self.message(_BATCH_BEGIN, 0, b"", 0, NFTABLES)]
        batch += [self.message(NFTABLES << 8 | kind, flags, body) for kind, flags, body in changes[:-1]]
        kind, flags, body = changes[-1]
        batch.append(self.message(NFTABLES << 8 | kind, flags | ACK, body))
        last = self._sequence
        batch.append(self.message(_BATCH_END, 0, b"", 0, NFTABLES))
        sock.send(b"".join(batch))
        self._await(sock, last)

    def _await(self, sock: socket.socket, last: int) -> None:
        """The answer to the last message. The kernel tells of every failure, in the order of the messages."""
        failed = 0
        while True:
            for kind, _, sequence, content in rtnl.messages(sock.recv(_RECEIVE_BYTES)):
                if kind != _ERROR:
                    continue
                failed = failed or -struct.unpack_from("=i", content)[0]
                if sequence >= last or failed == errno.EPERM:
                    _raise(failed)
                    return

    def request(self, kind: int, body: bytes, family: int, resource: int = 0) -> None:
        """One request that is only acknowledged. Raises OSError."""
        sock = self._open()
        sock.send(self.message(kind, ACK, body, family, resource))
        self._await(sock, self._sequence)

    def ask(self, kind: int, body: bytes) -> bytes | None:
        """The attributes of what is asked for; None when there is none."""
        sock = self._open()
        sock.send(self.message(NFTABLES << 8 | kind, 0, body))
        for answer, _, _, content in rtnl.messages(sock.recv(_RECEIVE_BYTES)):
            if answer != _ERROR:
                return content[GENERIC_BYTES:]
            code = -struct.unpack_from("=i", content)[0]
            if code != errno.ENOENT:
                _raise(code)
        return None

    def dump(self, kind: int, body: bytes) -> list[bytes]:
        """The attributes of all that is asked for; read again while it changes. Raises OSError."""
        for _ in range(TRIES):
            found = self._dump(kind, body)
            if found is not None:
                return found
        raise OSError(errno.EBUSY, "the list changed too fast to be read")

    def _dump(self, kind: int, body: bytes) -> list[bytes] | None:
        sock = self._open()
        sock.send(self.message(NFTABLES << 8 | kind, DUMP, body))
        found: list[bytes] = []
        interrupted = False
        while True:
            for answer, marks, sequence, content in rtnl.messages(sock.recv(_RECEIVE_BYTES)):
                if sequence != self._sequence:
                    continue
                interrupted = interrupted or bool(marks & _INTERRUPTED)
                if answer in (_ERROR, _DONE):
                    _raise(-struct.unpack_from("=i", content)[0] if len(content) >= 4 else 0)
                    return None if interrupted else found
                found.append(content[GENERIC_BYTES:])


def _raise(code: int) -> None:
    if code == errno.EINTR:
        return
    if code > 0:
        raise OSError(code, os.strerror(code))
