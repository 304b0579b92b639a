"""Many frames in one system call: sendmmsg(2) on a packet socket that is bound to its interface."""

from __future__ import annotations

import ctypes
import socket
from collections.abc import Sequence

SOL_PACKET, PACKET_QDISC_BYPASS = 263, 20  # linux/if_packet.h


class _Message(ctypes.Structure):
    """A struct mmsghdr (sendmmsg(2)) with what a bound packet socket needs of it."""

    _fields_ = (
        ("name", ctypes.c_void_p), ("name_length", ctypes.c_uint32),
        ("vector", ctypes.c_void_p), ("vector_length", ctypes.c_size_t),
        ("control", ctypes.c_void_p), ("control_length", ctypes.c_size_t),
        ("flags", ctypes.c_long), ("sent", ctypes.c_uint),
    )  # fmt: skip


class _Vector(ctypes.Structure):
    _fields_ = (("base", ctypes.c_char_p), ("length", ctypes.c_size_t))


_libc = ctypes.CDLL(None, use_errno=True)


class Batch:
    """Frames that are sent together, as often as wanted."""

    def __init__(self, frames: Sequence[bytes]) -> None:
        self._vectors = (_Vector * len(frames))(*[_Vector(frame, len(frame)) for frame in frames])
        at, size = ctypes.addressof(self._vectors), ctypes.sizeof(_Vector)
        messages = (_Message(vector=at + i * size, vector_length=1) for i in range(len(frames)))
        self._messages = (_Message * len(frames))(*messages)

    def send(self, sock: socket.socket) -> int:
        """Sends them; how many the kernel took, -1 if it did not take the first."""
        return int(_libc.sendmmsg(sock.fileno(), self._messages, len(self._messages), 0))


def packet_socket(ifname: str) -> socket.socket:
    """A socket that sends frames out of an interface of the calling thread's namespace, past its queue."""
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    sock.setsockopt(SOL_PACKET, PACKET_QDISC_BYPASS, 1)
    sock.bind((ifname, 0))
    return sock
