"""What a guest's software does, from within the test: connections made in the guest's namespace."""

from __future__ import annotations

import contextlib
import socket
import time
from dataclasses import dataclass
from types import TracebackType

from tests.lab import VethGuest

V4, V6, LINK_LOCAL = "169.254.169.254", "fd00:ec2::254", "fe80::a9fe:a9fe"
ALL = (V4, V6, LINK_LOCAL)
ID = "/latest/meta-data/instance-id"
TIMEOUT = 3.0


class Ended(Exception):
    """The service ended the connection before a whole answer."""


@dataclass(frozen=True)
class Answer:
    status: int
    body: str


def connect(
    guest: VethGuest, address: str = V4, timeout: float = TIMEOUT, source: tuple[str, int] | None = None
) -> socket.socket:
    """A connection from the guest. OSError as the guest's kernel says it."""
    target = (address, 80, 0, guest.ifindex if address.startswith("fe80") else 0) if ":" in address else (address, 80)
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = guest.call(socket.socket, family, socket.SOCK_STREAM)
    try:
        sock.settimeout(timeout)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if source is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(source)
        sock.connect(target)
    except BaseException:
        sock.close()
        raise
    return sock


class Talk:
    """One kept connection of a guest's."""

    def __init__(
        self,
        guest: VethGuest,
        address: str = V4,
        timeout: float = TIMEOUT,
        source: tuple[str, int] | None = None,
    ) -> None:
        self.sock = connect(guest, address, timeout, source)
        self._rest = b""

    def __enter__(self) -> Talk:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.sock.close()

    def ask(self, path: str = ID) -> Answer:
        """One request and its whole answer. Ended, or OSError."""
        self.sock.sendall(f"GET {path} HTTP/1.1\r\nhost: metadata\r\n\r\n".encode())
        return self.answer()

    def answer(self) -> Answer:
        """The next whole answer."""
        while b"\r\n\r\n" not in self._rest:
            self._more()
        head, _, self._rest = self._rest.partition(b"\r\n\r\n")
        lines = head.decode().lower().split("\r\n")
        length = next(int(line.split(":")[1]) for line in lines if line.startswith("content-length:"))
        while len(self._rest) < length:
            self._more()
        body, self._rest = self._rest[:length], self._rest[length:]
        return Answer(int(lines[0].split()[1]), body.decode())

    def _more(self) -> None:
        data = self.sock.recv(65536)
        if not data:
            raise Ended
        self._rest += data

    def end_within(self, seconds: float) -> str:
        """How the connection ends without the guest sending anything: `reset`, `eof`, or `open` if it does not."""
        self.sock.settimeout(seconds)
        try:
            return "data" if self.sock.recv(1) else "eof"
        except ConnectionResetError:
            return "reset"
        except TimeoutError:
            return "open"


def ask(guest: VethGuest, address: str = V4, path: str = ID, timeout: float = TIMEOUT) -> Answer:
    """One request on a connection of its own."""
    with Talk(guest, address, timeout) as talk:
        return talk.ask(path)


def outcome(guest: VethGuest, address: str = V4, timeout: float = 1.0) -> str:
    """What a guest meets: the body of a 200, the status as text, or `refused`, `reset`, `timeout`, `eof`."""
    try:
        answer = ask(guest, address, timeout=timeout)
        return answer.body if answer.status == 200 else str(answer.status)
    except ConnectionRefusedError:
        return "refused"
    except ConnectionResetError:
        return "reset"
    except TimeoutError:
        return "timeout"
    except Ended:
        return "eof"
    except OSError as error:
        return error.strerror or str(error)


def await_outcome(guest: VethGuest, want: str, address: str = V4, seconds: float = 5.0) -> float:
    """Ask until the outcome is `want`; the seconds that it took. AssertionError with the last one."""
    began = time.monotonic()
    while (last := outcome(guest, address, 0.5)) != want:
        assert time.monotonic() - began < seconds, f"{last} instead of {want} for {seconds} s"
        time.sleep(0.01)
    return time.monotonic() - began


def unanswered(sock: socket.socket, seconds: float) -> bool:
    """Whether nothing at all comes on a connection."""
    sock.settimeout(seconds)
    with contextlib.suppress(TimeoutError):
        sock.recv(1)
        return False
    return True
