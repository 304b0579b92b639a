"""By which number one network namespace knows another: rtnetlink's RTM_GETNSID. A veth whose other end is elsewhere
tells of it by that number alone (IFLA_LINK_NETNSID). Numbers are of linux/net_namespace.h and linux/rtnetlink.h.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from contextlib import nullcontext

from shim.netlink import rtnl

_GETNSID = 90
_NSID, _FD = 1, 3
_GENERIC = struct.pack("=Bxxx", 0)
_HEADER = struct.Struct("=IHHII")
_NOT_ASSIGNED = -1
_RECEIVE_BYTES = 1 << 12
_ERROR = 2


class Numbers:
    """Asks, in the network namespace that `enter` leads to when the first question is asked."""

    def __init__(self, enter: rtnl.Enter = nullcontext) -> None:
        self._enter = enter
        self._socket: socket.socket | None = None
        self._sequence = 0

    def of(self, fd: int) -> int | None:
        """The number that the namespace behind a descriptor is known by; None while it has none. Raises OSError."""
        sock = self._open()
        self._sequence += 1
        body = _GENERIC + rtnl.attribute(_FD, struct.pack("=I", fd))
        sock.send(_HEADER.pack(_HEADER.size + len(body), _GETNSID, rtnl.REQUEST, self._sequence, 0) + body)
        for kind, _, _, content in rtnl.messages(sock.recv(_RECEIVE_BYTES)):
            if kind == _ERROR:
                code = -struct.unpack_from("=i", content)[0]
                raise OSError(code, os.strerror(code))
            raw = rtnl.attributes(content[len(_GENERIC) :]).get(_NSID)
            number = struct.unpack("=i", raw)[0] if raw else _NOT_ASSIGNED
            return None if number == _NOT_ASSIGNED else int(number)
        raise OSError(errno.EPROTO, "no answer")

    def _open(self) -> socket.socket:
        if self._socket is None:
            with self._enter():
                self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
            self._socket.settimeout(5)
        return self._socket

    def close(self) -> None:
        """Closes the socket; the next question opens another."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
