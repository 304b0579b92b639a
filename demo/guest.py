"""What the demonstration's guests do: ask with curl, keep a connection open, and ask in haste."""

from __future__ import annotations

import json
import select
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from demo.show import WrongError, expect
from tests.lab import VethGuest

V4, V6, LINK_LOCAL = ADDRESSES = ("169.254.169.254", "fd00:ec2::254", "fe80::a9fe:a9fe")
INSTANCE_ID = "/latest/meta-data/instance-id"
REFUSED = 7  # curl: "Failed to connect to host"
SILENCE = 28  # curl: "Operation timeout"
KEPT_SECONDS = 0.05
"""How long the load keeps a connection: 20 new ones a second are below datapath.connection_rate."""


def url(address: str, path: str) -> str:
    """The URL as a guest writes it: link-local addresses need their interface (RFC 6874)."""
    host = f"[{address}%25eth0]" if address == LINK_LOCAL else f"[{address}]" if ":" in address else address
    return f"http://{host}{path}"


def curl(guest: VethGuest, address: str, path: str) -> str:
    """The body, whatever the status. Raises WrongError when there is no answer."""
    done = guest.run(["curl", "-sS", "--max-time", "3", url(address, path)], check=False)
    if done.returncode:
        raise WrongError(f"expected an answer from {address}; {done.stderr.strip()}")
    return done.stdout


def curl_status(guest: VethGuest, address: str, patience: float = 3) -> tuple[int, int]:
    """(curl's exit status, the HTTP status or 0)."""
    wanted = ["-o", "/dev/null", "-w", "%{http_code}", url(address, INSTANCE_ID)]
    argv = ["curl", "-s", "--max-time", str(patience), *wanted]
    done = guest.run(argv, check=False)
    return done.returncode, int(done.stdout or 0)


def addresses(guest: VethGuest) -> tuple[str, str]:
    """A guest's MAC and IPv4 address, as its own kernel says."""
    link = json.loads(guest.run(["ip", "-j", "address", "show", "eth0"]).stdout)[0]
    v4 = next(entry for entry in link["addr_info"] if entry["family"] == "inet")
    return link["address"], f"{v4['local']}/{v4['prefixlen']}"


def default_routes(guest: VethGuest) -> str:
    """A guest's default routes of both families; it should have none."""
    return "".join(guest.run(["ip", family, "route", "show", "default"]).stdout for family in ("-4", "-6"))


def knock(guest: VethGuest) -> tuple[bool, float]:
    """Whether a new connection is refused by a reset, and seconds until the guest knew."""
    sock = guest.call(socket.socket, socket.AF_INET, socket.SOCK_STREAM)
    sock.settimeout(3)
    began = time.perf_counter()
    try:
        sock.connect((V4, 80))
        return False, time.perf_counter() - began
    except ConnectionRefusedError:
        return True, time.perf_counter() - began
    except TimeoutError:
        raise WrongError("expected a reset, but a new connection hangs") from None
    finally:
        sock.close()


class Kept:
    """A keep-alive connection that a guest holds open."""

    def __init__(self, guest: VethGuest, address: str = V4) -> None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._socket = guest.call(socket.socket, family, socket.SOCK_STREAM)
        try:
            self._socket.settimeout(3)
            scope = (0, guest.ifindex) if address == LINK_LOCAL else ()
            self._socket.connect((address, 80, *scope))
        except OSError as error:
            self._socket.close()
            raise WrongError(f"expected a connection to {address}: {error}") from None

    def ask(self, path: str = INSTANCE_ID) -> str:
        """One request's body; the connection stays open."""
        request = f"GET {path} HTTP/1.1\r\nHost: metadata\r\n\r\n"
        try:
            self._socket.sendall(request.encode())
            head, body = self._read()
        except OSError as error:
            raise WrongError(f"expected an answer on the open connection: {error}") from None
        expect("status", head.split(b"\r\n")[0], b"HTTP/1.1 200 OK")
        return body.decode()

    def _read(self) -> tuple[bytes, bytes]:
        data = b""
        while b"\r\n\r\n" not in data:
            data += self._more()
        head, _, body = data.partition(b"\r\n\r\n")
        _, _, rest = head.lower().partition(b"content-length:")
        length = int(rest.split(b"\r\n")[0])
        while len(body) < length:
            body += self._more()
        return head, body

    def _more(self) -> bytes:
        data = self._socket.recv(65536)
        if not data:
            raise ConnectionResetError("closed by the service")
        return data

    def watch(self) -> Watch:
        """Note when this connection ends, from now on."""
        return Watch(self._socket)

    def close(self) -> None:
        """Close it, as a guest would."""
        self._socket.close()


class Watch:
    """Waits in a thread for the end of a connection that is idle, and notes when that was."""

    def __init__(self, sock: socket.socket) -> None:
        self._ended = 0.0
        self._socket = sock
        self._thread = threading.Thread(target=self._wait, daemon=True)
        self._thread.start()

    def _wait(self) -> None:
        poll = select.poll()
        poll.register(self._socket, select.POLLIN | select.POLLRDHUP)
        if poll.poll(3000):
            self._ended = time.perf_counter()

    def ended(self) -> float:
        """The time of the end, of time.perf_counter(). Raises WrongError if there was none within 3 s."""
        self._thread.join()
        if not self._ended:
            raise WrongError("expected the open connection to end within 3 s, but it is open")
        return self._ended


@dataclass
class Load:
    """One guest asks as fast as it can, for a moment, and reads every answer."""

    guest: VethGuest
    wanted: str
    seconds: float
    answers: int = 0
    connections: int = 0

    def run(self) -> None:
        """Until the time is over. Raises WrongError at the first answer that is another's."""
        end = time.monotonic() + self.seconds
        while time.monotonic() < end:
            self._connection(ADDRESSES[self.connections % len(ADDRESSES)], time.monotonic() + KEPT_SECONDS)

    def _connection(self, address: str, until: float) -> None:
        kept = Kept(self.guest, address)
        self.connections += 1
        try:
            while time.monotonic() < until:
                expect(f"{self.answers} answers under load, then", kept.ask(), self.wanted)
                self.answers += 1
        finally:
            kept.close()


def at_once(loads: list[Load]) -> None:
    """Run them side by side. Raises WrongError if any answer was wrong."""
    with ThreadPoolExecutor(len(loads)) as pool:
        for result in [pool.submit(load.run) for load in loads]:
            result.result()
