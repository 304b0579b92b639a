"""A guest's requests with all that HTTP has: methods, headers, bodies, answers as bytes."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from tests.lab import VethGuest
from tests.netns.talk import V4, connect


@dataclass(frozen=True)
class Reply:
    """A whole answer; header names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def etag(self) -> str:
        return self.headers["etag"]

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def request(method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None) -> bytes:
    """The bytes of a request, whose connection ends with the answer."""
    lines = {"host": "metadata", "connection": "close", **(headers or {})}
    if body or method in ("PUT", "POST"):
        lines["content-length"] = str(len(body))
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + body


def say(
    guest: VethGuest,
    method: str,
    path: str,
    body: bytes = b"",
    headers: dict[str, str] | None = None,
    address: str = V4,
    timeout: float = 5.0,
) -> Reply:
    """One request on a connection of its own, and its answer."""
    with connect(guest, address, timeout) as sock:
        sock.sendall(request(method, path, body, headers))
        return read(sock)


def get(guest: VethGuest, path: str, address: str = V4, timeout: float = 5.0, **headers: str) -> Reply:
    """A GET; names of headers with _ for -."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return say(guest, "GET", path, headers=named, address=address, timeout=timeout)


def read(sock: socket.socket) -> Reply:
    """What comes until the other end closes. ConnectionResetError, TimeoutError; ValueError for half an answer."""
    raw = b""
    while more := sock.recv(65536):
        raw += more
    return parse(raw)


def parse(raw: bytes) -> Reply:
    """An answer of known length. ValueError where it is not whole."""
    head, blank, body = raw.partition(b"\r\n\r\n")
    if not blank:
        raise ValueError("no whole head")
    first, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    status = int(first.split()[1])
    if status not in (204, 304) and int(headers["content-length"]) != len(body):
        raise ValueError(f"{len(body)} bytes of {headers['content-length']}")
    return Reply(status, headers, body)


def at_once(guests: Iterable[VethGuest], path: str, each: int, timeout: float = 30.0) -> list[Reply | Exception]:
    """So many GETs of each guest, all sent before any answer is read."""
    socks = [connect(guest, timeout=timeout) for guest in guests for _ in range(each)]
    for sock in socks:
        sock.sendall(request("GET", path))
    found: list[Reply | Exception] = [TimeoutError()] * len(socks)

    def take(number: int) -> None:
        try:
            found[number] = read(socks[number])
        except (OSError, ValueError) as error:
            found[number] = error
        finally:
            socks[number].close()

    threads = [threading.Thread(target=take, args=(number,)) for number in range(len(socks))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found
