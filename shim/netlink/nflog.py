"""Packets that rules log: one nflog group, read without waiting. See Logs in shim/datapath/base.py."""

from __future__ import annotations

import errno
import socket
import struct
from contextlib import nullcontext

from shim.errors import KernelError
from shim.netlink import nfnl, rtnl

# linux/netfilter/nfnetlink_log.h
_PACKET, _CONFIG = 0, 1
_COMMAND, _MODE, _THRESHOLD = 1, 2, 5
_BIND = 1
_COPY_PACKET = 2
_MARK, _PAYLOAD, _PREFIX, _LINK_HEADER = 2, 9, 10, 16
_RECEIVE_BYTES = 1 << 16
_ROUNDS = 256  # datagrams a call: a flood must not keep the reader for ever


class NfLog:
    """The packets of one group of the network namespace that `enter` leads to: one reader at a time."""

    def __init__(self, group: int, copy_bytes: int = 256, enter: rtnl.Enter = nullcontext) -> None:
        self._enter = enter
        self._group = group
        self._copy_bytes = copy_bytes
        self._socket: socket.socket | None = None

    @property
    def fd(self) -> int:
        """Readable when packets wait; -1 while it is not open."""
        return self._socket.fileno() if self._socket else -1

    def open(self) -> None:
        """Begins to listen. Raises KernelError when somebody else does."""
        if self._socket is not None:
            return
        made = nfnl.Socket(enter=self._enter)
        try:
            for attribute in self._settings():
                made.request(nfnl.ULOG << 8 | _CONFIG, attribute, socket.AF_UNSPEC, self._group)
        except OSError as error:
            made.close()
            busy = error.errno in (errno.EBUSY, errno.EPERM)
            hint = "who else listens? see /proc/net/netfilter/nfnetlink_log" if busy else "see `metashim check`"
            what = f"cannot listen to nflog group {self._group}: {error.strerror}"
            raise KernelError(what, hint, error.errno or 0) from error
        self._socket = made.detach()
        self._socket.setblocking(False)

    def _settings(self) -> list[bytes]:
        return [
            nfnl.attribute(_COMMAND, bytes([_BIND])),
            nfnl.attribute(_MODE, struct.pack(">IBx", self._copy_bytes, _COPY_PACKET)),
            nfnl.number(_THRESHOLD, 1),  # each at once, not a second's together
        ]

    def read(self) -> list[tuple[str, int, bytes, bytes]]:
        """(prefix, mark, packet from its network header, what is before that) of what came since the last call. Never
        waits."""
        found = []
        for _ in range(_ROUNDS if self._socket else 0):
            try:
                data = self._socket.recv(_RECEIVE_BYTES)  # type: ignore[union-attr]
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:  # some were lost: counters have them
                    raise
                continue
            found += [_read(body) for kind, _, _, body in rtnl.messages(data) if kind == nfnl.ULOG << 8 | _PACKET]
        return found

    def close(self) -> None:
        """Ends it."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def _read(body: bytes) -> tuple[str, int, bytes, bytes]:
    found = rtnl.attributes(body[nfnl.GENERIC_BYTES :])
    mark = int.from_bytes(found.get(_MARK, b""), "big")
    return rtnl.text(found.get(_PREFIX, b"")), mark, found.get(_PAYLOAD, b""), found.get(_LINK_HEADER, b"")
