"""The load on a server, the same for each: wrk for rates, and one caller after the other for new connections."""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.lab import Namespace

MICROSECONDS = {"us": 1.0, "ms": 1e3, "s": 1e6}


@dataclass(frozen=True, slots=True)
class Run:
    """What one run of wrk saw: requests/s, latencies in microseconds, and how many requests were answered."""

    rate: float
    p50: float
    p99: float
    requests: int


def cpus() -> tuple[int, int]:
    """One CPU and another; the same one where there is no other."""
    usable = sorted(os.sched_getaffinity(0))
    return usable[0], usable[-1]


def on_cpu(number: int) -> list[str]:
    """What a command begins with to be run on that CPU alone."""
    return ["taskset", "--cpu-list", str(number)]


def wrk(
    guest: Namespace, url: str, connections: int, seconds: int, *, fresh: bool = False, prefix: Sequence[str] = ()
) -> Run:
    """Runs wrk in a guest, behind `prefix`; `fresh` asks for a new connection per request. RuntimeError for any that
    failed."""
    header = ["-H", "Connection: close"] if fresh else []
    options = ["-t1", f"-c{connections}", f"-d{seconds}s", "--latency", *header]
    return read_wrk(guest.run([*prefix, "wrk", *options, url]).stdout)


def read_wrk(text: str) -> Run:
    """Reads what wrk printed. RuntimeError when requests failed, or for text that is not wrk's."""
    if "Non-2xx" in text or "Socket errors" in text:
        raise RuntimeError(f"requests failed:\n{text}")
    rate = re.search(r"Requests/sec: +([\d.]+)", text)
    requests = re.search(r"(\d+) requests in ", text)
    latencies = {m[1]: float(m[2]) * MICROSECONDS[m[3]] for m in re.finditer(r" (50|99)% +([\d.]+)(us|ms|s)", text)}
    if rate is None or requests is None or len(latencies) != 2:
        raise RuntimeError(f"wrk printed something else:\n{text}")
    return Run(float(rate[1]), latencies["50"], latencies["99"], int(requests[1]))


def await_answer(guest: Namespace, host: str, port: int, path: str, seconds: float = 10) -> None:
    """Waits until a server answers with 200. Raises what the last try met when `seconds` are over."""
    end = time.monotonic() + seconds
    while True:
        try:
            visits(guest, host, port, path, 0.01)
            return
        except (OSError, RuntimeError):
            if time.monotonic() > end:
                raise
            time.sleep(0.05)


def cpu_seconds(pid: int) -> float:
    """What a process, all its threads, has used of CPUs since it began."""
    return read_cpu(Path(f"/proc/{pid}/stat").read_text(), os.sysconf("SC_CLK_TCK"))


def read_cpu(stat: str, ticks: int) -> float:
    """utime and stime, in seconds, of a process's `stat` (proc(5)); `ticks` a second. The name in it may hold
    anything."""
    fields = stat.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / ticks


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
