"""Whether a request that got no answer provably never reached the backend.

Theory of operation. A kept connection may be closed by the backend in the instant that a request is written to
it. Such a request may be tried again, whatever its method (RFC 9110, 9.2.2), if none of it was taken. The kernel
knows, as long as the socket is open:

- tcpi_bytes_sent has not grown: nothing left this host, however the connection ended.
- The backend ended with a FIN, and tcpi_bytes_acked says that it had taken nothing of the request by then: who
  has said its last cannot have meant to answer. A reset is no such proof. It may come from a backend that has
  read the request, and whose kernel had delayed the acknowledgement: the one that a RST carries is not counted.

On a Unix socket a write that fails with EPIPE has taken nothing, where it is small enough to be taken whole.
TLS hides what is whose, so nothing is proven there.
"""

from __future__ import annotations

import socket
import struct
from typing import Protocol

# struct tcp_info of linux/tcp.h: tcpi_bytes_acked (4.1), tcpi_bytes_sent (4.19).
_ACKED_AT = 120
_SENT_AT = 200
_U64 = struct.Struct("=Q")
_INFO_BYTES = 256
# unix(7): one write of up to about half of SO_SNDBUF (106 KB) is queued in one piece, or not at all.
UNIX_ATOMIC_BYTES = 32_768


class Socket(Protocol):
    """What a transport gives as its "socket"."""

    family: int

    def getsockopt(self, level: int, name: int, length: int, /) -> bytes:
        """As socket.getsockopt."""


def tcp_counts(sock: Socket) -> tuple[int, int] | None:
    """Bytes that were acknowledged, and that were sent, as the kernel counts; None where it does not say."""
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO_BYTES)
    except OSError:
        return None
    if len(info) < _SENT_AT + _U64.size:
        return None
    return _U64.unpack_from(info, _ACKED_AT)[0], _U64.unpack_from(info, _SENT_AT)[0]


class Proof:
    """Of one connection, from when it is made. `written` are the bytes that were given to it before a request."""

    __slots__ = ("_acked", "_socket")

    def __init__(self, sock: Socket) -> None:
        self._socket = sock
        # The SYN counts as an acknowledged byte, in the kernels we know.
        counts = None if sock.family == socket.AF_UNIX else tcp_counts(sock)
        self._acked = None if counts is None else counts[0]

    def unsent(self, written: int, size: int | None, error: BaseException | None) -> bool:
        """Of a request of `size` bytes (None: in parts); `error` is what the connection was lost by, None for FIN."""
        if self._socket.family == socket.AF_UNIX:
            return isinstance(error, BrokenPipeError) and size is not None and size <= UNIX_ATOMIC_BYTES
        counts = None if self._acked is None else tcp_counts(self._socket)
        if counts is None or self._acked is None:
            return False
        acked, sent = counts
        return sent <= written or (error is None and acked - self._acked <= written)
