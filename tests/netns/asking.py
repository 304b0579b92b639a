"""Guests that ask without a pause, and count every request and every one that failed.

    with Load(guests) as load:
        ...
    assert load.failures == []

A failure is a connection that is refused or reset, an end before the whole answer, an answer that is late or not a
200, one with another guest's data. Nothing is tried again. What a client must do by RFC 9112 these do: a connection
whose last answer said `Connection: close`, or on which the server's end was there before the request was sent, is not
used again (9.6).
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType

from tests.lab import VethGuest
from tests.netns.talk import ID, V4, V6

LATE_SECONDS = 20.0
PAUSE_SECONDS = 0.02
"""Up to so much between two requests of one connection, as 32 without any would leave the machine for nothing else."""
REQUEST = f"GET {ID} HTTP/1.1\r\nhost: metadata\r\n\r\n".encode()


class Failed(Exception):
    """What a guest met instead of its answer."""


@dataclass
class Load:
    """`guests` are those who ask, with what each is to get; `connections` in all, every other one is kept."""

    guests: Sequence[tuple[VethGuest, str]]
    connections: int = 32
    patience: float = LATE_SECONDS
    requests: int = 0
    opened: int = 0
    longest: float = 0.0
    failures: list[str] = field(default_factory=list)

    def __enter__(self) -> Load:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def answered(self, line: Line, want: str, got: str, began: float) -> None:
        """A request that was begun then got a 200. Failed, if that is one all the same."""
        if got != want:
            raise Failed(f"got {got!r}")

    def failed(self, line: Line, kind: str, error: Exception) -> None:
        """A request got none."""
        how = f"{type(error).__name__} {error}".strip()
        self.failures.append(f"{line.guest.name} {line.address} {kind}: {line.stage}: {how}")

    def has_had(self, requests: int) -> bool:
        """Whether so many were answered, or failed."""
        return self.requests >= requests

    def __str__(self) -> str:
        return (
            f"{self.requests} requests on {self.opened} connections, {len(self.failures)} failed; "
            f"the longest took {self.longest:.2f} s"
        )

    async def _run(self) -> None:
        await asyncio.gather(*(self._client(number) for number in range(self.connections)))

    async def _client(self, number: int) -> None:
        guest, want = self.guests[number % len(self.guests)]
        pauses, kept = random.Random(number), number % 2 == 0
        line = Line(guest, V6 if number % 4 > 1 else V4)
        began = time.monotonic()
        while not self._stop.is_set():
            began = time.monotonic()
            try:
                async with asyncio.timeout(self.patience):
                    self.opened += await line.ready()
                    self.answered(line, want, await line.ask(), began)
            except (OSError, Failed, TimeoutError) as error:
                self.failed(line, "kept" if kept else "new", error)
                line.close()
            self.requests += 1
            self.longest = max(self.longest, time.monotonic() - began)
            if not kept:
                line.close()
            await asyncio.sleep(pauses.random() * PAUSE_SECONDS)
        line.close()


class Line:
    """One guest's connection, made again once it is over."""

    def __init__(self, guest: VethGuest, address: str) -> None:
        self.guest, self.address = guest, address
        self.stage = ""
        self._sock: socket.socket | None = None

    def close(self) -> None:
        if self._sock is not None:
            self._sock.close()
            self._sock = None

    async def ready(self) -> bool:
        """Connect, unless there is a connection that the server has not ended; whether it did."""
        self.stage = "connect"
        if self._sock is not None and not _ended(self._sock):
            return False
        self.close()
        family = socket.AF_INET6 if ":" in self.address else socket.AF_INET
        sock = self._sock = self.guest.call(socket.socket, family, socket.SOCK_STREAM)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, (self.address, 80))
        return True

    async def ask(self) -> str:
        """The body of a 200. Failed, OSError."""
        loop, sock = asyncio.get_running_loop(), self._sock
        assert sock is not None
        self.stage = "send"
        await loop.sock_sendall(sock, REQUEST)
        self.stage, answer = "receive", b""
        while (whole := _whole(answer)) is None:
            more = await loop.sock_recv(sock, 65536)
            if not more:
                raise Failed(f"ended after {len(answer)} bytes")
            answer += more
        status, body, last = whole
        if last:
            self.close()
        if status != 200:
            raise Failed(f"status {status}")
        return body


def _ended(sock: socket.socket) -> bool:
    with contextlib.suppress(BlockingIOError):
        return not sock.recv(1, socket.MSG_PEEK)  # OSError: it was reset, which is no end
    return False


def _whole(answer: bytes) -> tuple[int, str, bool] | None:
    """Status, body and whether it is the connection's last; None as long as it is not whole."""
    head, end, body = answer.partition(b"\r\n\r\n")
    lines = head.decode().lower().split("\r\n")
    length = next((int(line.split(":")[1]) for line in lines if line.startswith("content-length:")), 0)
    if not end or len(body) < length:
        return None
    return int(lines[0].split()[1]), body.decode(), "connection: close" in lines
