"""The load on a server, the same for each: wrk for rates, and one caller after the other for new connections."""

from __future__ import annotations

import re
import socket
import time
from dataclasses import dataclass

from tests.lab import Namespace

MICROSECONDS = {"us": 1.0, "ms": 1e3, "s": 1e6}


@dataclass(frozen=True, slots=True)
class Run:
    """What one run of wrk saw: requests/s, and latencies in microseconds."""

    rate: float
    p50: float
    p99: float


def wrk(guest: Namespace, url: str, connections: int, seconds: int, *, fresh: bool = False) -> Run:
    """Runs wrk in a guest; `fresh` asks for a new connection per request. RuntimeError for any that failed."""
    header = ["-H", "Connection: close"] if fresh else []
    options = ["-t1", f"-c{connections}", f"-d{seconds}s", "--latency", *header]
    return read_wrk(guest.run(["wrk", *options, url]).stdout)


def read_wrk(text: str) -> Run:
    """Reads what wrk printed. RuntimeError when requests failed, or for text that is not wrk's."""
    if "Non-2xx" in text or "Socket errors" in text:
        raise RuntimeError(f"requests failed:\n{text}")
    rate = re.search(r"Requests/sec: +([\d.]+)", text)
    latencies = {m[1]: float(m[2]) * MICROSECONDS[m[3]] for m in re.finditer(r" (50|99)% +([\d.]+)(us|ms|s)", text)}
    if rate is None or len(latencies) != 2:
        raise RuntimeError(f"wrk printed something else:\n{text}")
    return Run(float(rate[1]), latencies["50"], latencies["99"])


def visits(guest: Namespace, host: str, port: int, path: str, seconds: float) -> list[float]:
    """Microseconds from connecting to the end of the answer, one new connection after the other."""
    request = f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode()
    times = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with guest.enter():
            sock = socket.socket()
        began = time.perf_counter()
        with sock:
            sock.settimeout(5)
            sock.connect((host, port))
            sock.sendall(request)
            answer = b""
            while part := sock.recv(65536):
                answer += part
        times.append((time.perf_counter() - began) * 1e6)
        if not answer.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(f"http://{host}:{port}{path} answered {answer[:60]!r}")
    return times
