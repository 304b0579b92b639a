"""`python -m bench.crowd LINKS EACH PATH`: guests that wait, on links e1, e2, … of this namespace, so many on each.

Each GETs PATH, then asks again and again for the next state of it (`wait`, `etag`). A line `waiting` says that all do;
once all were answered the times of their answers follow in one line, JSON, in Unix seconds, and they wait again. When
an answer came is the guests' kernel's word (SO_TIMESTAMPNS): all of them share a CPU with the service here, as no
guests do, so they sleep until the last one has come.
"""

from __future__ import annotations

import json
import re
import resource
import select
import socket
import struct
import sys
import time
from collections.abc import Iterator

SERVICE = ("169.254.169.254", 80)
ETAG = re.compile(rb'etag: "([0-9a-f]+)"', re.IGNORECASE)
WAIT_SECONDS = 300
LOOK_SECONDS = 0.2
SO_TIMESTAMPNS = 35  # asm-generic/socket.h; the control message has the same number
TIMESPEC = struct.Struct("qq")


def connect(link: str) -> socket.socket:
    """A connection over one link."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, link.encode())
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
    sock.settimeout(20)
    sock.connect(SERVICE)
    return sock


def ask(sock: socket.socket, path: str) -> bytes:
    """The entity tag of what is now."""
    sock.sendall(f"GET {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
    return tag_of(sock.recv(65536))


def tag_of(answer: bytes) -> bytes:
    """Of an answer of 200. RuntimeError for any other."""
    found = ETAG.search(answer)
    if not answer.startswith(b"HTTP/1.1 200 ") or found is None:
        raise RuntimeError(f"answered {answer[:200]!r}")
    return found[1]


def taken(sock: socket.socket) -> tuple[bytes, float]:
    """An answer that is there, and when the last of it came, in Unix seconds."""
    answer, told, _, _ = sock.recvmsg(65536, 256)
    at = next(TIMESPEC.unpack(data) for _, kind, data in told if kind == SO_TIMESTAMPNS)
    return answer, at[0] + at[1] / 1e9


def rounds(socks: list[socket.socket], path: str) -> Iterator[list[float]]:
    """The times at which each was answered, once a change."""
    poll = select.epoll()
    by_number = {sock.fileno(): sock for sock in socks}
    tags = {number: ask(sock, path) for number, sock in by_number.items()}
    for number in by_number:
        poll.register(number, select.EPOLLIN)
    while True:
        for number, sock in by_number.items():
            wait = f"GET {path}?wait={WAIT_SECONDS}&etag={tags[number].decode()} HTTP/1.1\r\nhost: x\r\n\r\n"
            sock.sendall(wait.encode())
        print("waiting", flush=True)
        while len(poll.poll(0, len(socks))) < len(socks):
            time.sleep(LOOK_SECONDS)
        answers = {number: taken(sock) for number, sock in by_number.items()}
        tags = {number: tag_of(answer) for number, (answer, _) in answers.items()}
        yield [at for _, at in answers.values()]


def main() -> None:
    links, each, path = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    most = links * each + 64
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    socks = [connect(f"e{link}") for link in range(1, links + 1) for _ in range(each)]
    for times in rounds(socks, path):
        print(json.dumps(times), flush=True)


if __name__ == "__main__":
    main()
