"""The proxy's listening sockets, kept over all restarts: of workers, of the agent, of both.

Theory of operation. A listening socket has a queue of connections that nobody accepted yet, and they are reset when
the last who has the socket closes it. So the same ones are handed from process to process. The agent has them and
gives them to each worker. An agent that starts takes them from systemd, where the former one had them kept, or from a
worker that runs (pidfd_getfd(2)); what is had of neither is made. While nobody accepts guests wait, and are not
refused. Sockets of a former gateway are of no use: nothing comes to them any more.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import logging
import os
import socket
from collections.abc import Generator, Iterable
from pathlib import Path

from shim import systemd
from shim.netlink.gateway import Gateway
from shim.netlink.listening import Place, listen, place_of, places

log = logging.getLogger(__name__)

SYS_PIDFD_GETFD = 438  # the same number on every architecture, Linux 5.6

_libc = ctypes.CDLL(None, use_errno=True)


class Listeners:
    """Of one gateway, on `ports`, both families."""

    def __init__(self, gateway: Gateway, ports: tuple[int, ...]) -> None:
        self._gateway = gateway
        self._places = places(ports)
        self._kept: dict[Place, socket.socket] = {}

    def gather(self, pids: Iterable[int]) -> None:
        """Takes what systemd kept, then what is missing from these workers. To be called once the gateway stands."""
        for name, fd in systemd.kept():
            if self._take(fd) is None:
                systemd.drop(name)
        for pid in pids:
            try:
                self._gather_from(pid)
            except OSError as error:
                log.warning("what worker %d listens on cannot be had of it: %s", pid, error.strerror)

    def _gather_from(self, pid: int) -> None:
        with contextlib.closing(_sockets_of(pid)) as fds:
            while len(self._kept) < len(self._places) and (fd := next(fds, None)) is not None:
                place = self._take(fd)
                if place is not None:
                    systemd.keep(place.name, fd)

    def _take(self, fd: int) -> Place | None:
        """Where it listens, if that is a place to be had; else it is closed."""
        try:
            sock = socket.socket(fileno=fd)
        except OSError:  # it is none
            os.close(fd)
            return None
        place = place_of(self._gateway, sock)
        if place is None or place not in self._places or place in self._kept:
            sock.close()
            return None
        self._kept[place] = sock
        return place

    def all(self) -> list[socket.socket]:
        """All of them, made where they are missing, or where a worker had one listen no more. Raises OSError."""
        for place in self._places:
            former = self._kept.get(place)
            if former is not None and place_of(self._gateway, former) == place:
                continue
            self._drop(place)
            self._kept[place] = made = listen(self._gateway, place)
            systemd.keep(place.name, made.fileno())
        return [self._kept[place] for place in self._places]

    def drop(self) -> None:
        """The gateway is another one now."""
        for place in self._places:
            self._drop(place)

    def _drop(self, place: Place) -> None:
        former = self._kept.pop(place, None)
        if former is not None:
            former.close()
            systemd.drop(place.name)


def _sockets_of(pid: int) -> Generator[int, None, None]:
    """Copies of all sockets that a process has open, the lowest number first. Raises OSError.

    It takes CAP_SYS_PTRACE where the process is another user's.
    """
    process = os.pidfd_open(pid)
    try:
        for number in sorted(int(entry.name) for entry in Path(f"/proc/{pid}/fd").iterdir()):
            fd = _copied(process, number) if _is_socket(pid, number) else None
            if fd is not None:
                yield fd
    finally:
        os.close(process)


def _is_socket(pid: int, number: int) -> bool:
    try:
        return str(Path(f"/proc/{pid}/fd/{number}").readlink()).startswith("socket:")
    except FileNotFoundError:
        return False


def _copied(process: int, number: int) -> int | None:
    """None if it was closed meanwhile."""
    fd = _libc.syscall(SYS_PIDFD_GETFD, process, number, 0)
    if fd >= 0:
        return int(fd)
    code = ctypes.get_errno()
    if code == errno.EBADF:
        return None
    raise OSError(code, os.strerror(code))
