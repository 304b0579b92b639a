"""The proxy's listening sockets: made inside a gateway's namespace, and told apart from all others."""

from __future__ import annotations

import fcntl
import os
import socket
from typing import NamedTuple

from shim.netlink.gateway import BACKLOG, Gateway, entered

SIOCGSKNS = 0x894C  # linux/sockios.h: a socket's network namespace, as a descriptor


class Place(NamedTuple):
    """Where one listens: on every address of the gateway."""

    family: int
    port: int

    @property
    def name(self) -> str:
        """In a few letters."""
        return f"{'ipv6' if self.family == socket.AF_INET6 else 'ipv4'}-{self.port}"


def places(ports: tuple[int, ...]) -> list[Place]:
    """Both families, for every port."""
    return [Place(family, port) for port in ports for family in (socket.AF_INET, socket.AF_INET6)]


def listen(gateway: Gateway, place: Place) -> socket.socket:
    """A listening socket inside the gateway's namespace. Raises OSError."""
    with entered(gateway.path):
        sock = socket.socket(place.family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # A worker that another agent left may listen there already, on a socket that could not be had of it.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    if place.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    sock.bind(("::" if place.family == socket.AF_INET6 else "0.0.0.0", place.port))
    sock.listen(BACKLOG)
    sock.setblocking(False)
    return sock


def place_of(gateway: Gateway, sock: socket.socket) -> Place | None:
    """Where a socket listens in the gateway's namespace; None if it does not, or in a former one of that name."""
    try:
        if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) or not _is_inside(gateway, sock):
            return None
        name = sock.getsockname()
    except OSError:
        return None
    return Place(sock.family, name[1]) if sock.family in (socket.AF_INET, socket.AF_INET6) else None


def _is_inside(gateway: Gateway, sock: socket.socket) -> bool:
    """A namespace's number is not another's as long as a socket is in it."""
    fd = fcntl.ioctl(sock.fileno(), SIOCGSKNS)
    try:
        own, there = os.fstat(fd), gateway.path.stat()
        return (own.st_dev, own.st_ino) == (there.st_dev, there.st_ino)
    finally:
        os.close(fd)
