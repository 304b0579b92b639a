"""A client that says exactly what it is told to, and shows an answer whole: every header, the body's bytes.

    with Visit(talk.connect(guest)) as visit:
        assert visit.ask("/latest/user-data").body == b"..."

The answers are parsed by http.client: http.client.HTTPException or OSError where there is no whole one.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from http.client import HTTPResponse
from types import TracebackType

Fields = Iterable[tuple[str, str]]


@dataclass(frozen=True)
class Reply:
    """A whole answer; the names of its headers as they came."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes

    def header(self, name: str) -> str | None:
        """The first value of a header, if it is there."""
        return next((value for key, value in self.headers if key.lower() == name.lower()), None)

    @property
    def text(self) -> str:
        return self.body.decode()


def request(path: str = "/", method: str = "GET", headers: Fields = (), body: bytes | None = None) -> bytes:
    """A request's bytes; with a body, or an empty one, it has a Content-Length."""
    lines = [f"{method} {path} HTTP/1.1", "Host: metadata", *(f"{name}: {value}" for name, value in headers)]
    if body is not None:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + (body or b"")


def chunked(path: str, method: str, chunks: Sequence[bytes], headers: Fields = ()) -> bytes:
    """A request with a chunked body."""
    head = request(path, method, [*headers, ("Transfer-Encoding", "chunked")])
    return head + b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in (*chunks, b""))


class Visit:
    """One kept connection."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock

    def ask(
        self, path: str = "/", method: str = "GET", headers: Fields = (), body: bytes | None = None
    ) -> Reply:
        """One request and its whole answer."""
        return self.send(request(path, method, headers, body), method=method)

    def send(self, *pieces: bytes, pause: float = 0.0, method: str = "GET") -> Reply:
        """A request in pieces, with a pause (seconds) between them, and its whole answer."""
        for number, piece in enumerate(pieces):
            if number:
                time.sleep(pause)
            self.sock.sendall(piece)
        with HTTPResponse(self.sock, method=method) as response:
            response.begin()
            return Reply(response.status, tuple(response.getheaders()), response.read())

    def __enter__(self) -> Visit:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.sock.close()
