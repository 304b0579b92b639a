"""A backend that does anything: keeps every byte it gets, and answers what a script says, well-formed or not.

    with Raw(lab.host) as raw:
        raw.play("/cut", reset(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf"))
        ...
        assert raw.heard("/cut")[0].header("X-Instance-ID") == [...]

A script is called with the connection and the request, and may do to it what it likes. What has no script gets
`otherwise`, by default a plain 200, so that health checks pass. Threads of the test's own process; the socket is in the
namespace that it was made in.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from tests.backends.process import LOOPBACK, dial, family, inside, keep_secret, url
from tests.lab import Namespace

SO_LINGER_RESET = struct.pack("ii", 1, 0)
CLOSE_SECONDS = 3.0


@dataclass(frozen=True)
class Heard:
    """One request, as it came."""

    head: bytes
    body: bytes

    @property
    def method(self) -> str:
        return self.head.split(b" ")[0].decode()

    @property
    def target(self) -> str:
        return self.head.split(b" ")[1].decode("latin-1")

    @property
    def headers(self) -> list[tuple[str, str]]:
        """Names in lower case, in order."""
        lines = self.head.decode("latin-1").split("\r\n")[1:]
        return [(name.lower(), value.strip()) for name, _, value in (line.partition(":") for line in lines) if name]

    def header(self, name: str) -> list[str]:
        """Every value of a header."""
        return [value for key, value in self.headers if key == name.lower()]


class Connection:
    """One connection of a client's."""

    def __init__(self, sock: socket.socket, stopped: threading.Event) -> None:
        self.sock, self.stopped = sock, stopped
        self.bytes = bytearray()
        """Every byte that came."""
        self._rest = b""

    def request(self) -> Heard | None:
        """The next request; None at the end of the connection."""
        head = self._until(b"\r\n\r\n")
        if head is None:
            return None
        body = self._body(Heard(head, b""))
        return None if body is None else Heard(head, body)

    def _body(self, heard: Heard) -> bytes | None:
        if heard.header("transfer-encoding"):
            return self._chunked()
        length = heard.header("content-length")
        return self._exactly(int(length[0])) if length else b""

    def _chunked(self) -> bytes | None:
        """The data of all chunks."""
        data = b""
        while (line := self._until(b"\r\n")) is not None:
            size = int(line.split(b";")[0], 16)
            chunk = self._exactly(size + 2)
            if chunk is None:
                return None
            data += chunk[:size]
            if size == 0:
                return data
        return None

    def _until(self, mark: bytes) -> bytes | None:
        while mark not in self._rest:
            if not self._more():
                return None
        found, _, self._rest = self._rest.partition(mark)
        return found + mark

    def _exactly(self, count: int) -> bytes | None:
        while len(self._rest) < count:
            if not self._more():
                return None
        found, self._rest = self._rest[:count], self._rest[count:]
        return found

    def _more(self) -> bool:
        data = self.sock.recv(65536)
        self.bytes += data
        self._rest += data
        return bool(data)

    def send(self, data: bytes) -> None:
        """Send bytes as they are."""
        self.sock.sendall(data)

    def reset(self) -> None:
        """End the connection with a TCP RST."""
        time.sleep(0.05)  # what was sent before is read first: a reset throws away what waits
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, SO_LINGER_RESET)
        self.sock.close()

    def hang_up(self) -> None:
        """End the connection in order."""
        self.sock.shutdown(socket.SHUT_RDWR)
        self.sock.close()

    def wait(self) -> None:
        """Say nothing until the client goes or the backend stops."""
        with contextlib.suppress(OSError):
            while not self.stopped.is_set() and self._more():
                pass


Script = Callable[[Connection, Heard], None]


def message(body: bytes = b"", status: int = 200, *headers: tuple[str, str], reason: str = "OK") -> bytes:
    """A well-formed answer with a Content-Length."""
    lines = [f"HTTP/1.1 {status} {reason}", *(f"{name}: {value}" for name, value in headers)]
    return "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode("latin-1") + body


def says(*pieces: bytes, pause: float = 0.0) -> Script:
    """Send these bytes, whatever they are, with a pause (seconds) before each but the first; keep the connection."""

    def script(connection: Connection, _: Heard) -> None:
        for number, piece in enumerate(pieces):
            if number and connection.stopped.wait(pause):
                return
            connection.send(piece)

    return script


def hangs_up(data: bytes = b"") -> Script:
    """Send these bytes, then close."""

    def script(connection: Connection, _: Heard) -> None:
        connection.send(data)
        connection.hang_up()

    return script


def resets(data: bytes = b"") -> Script:
    """Send these bytes, then reset."""

    def script(connection: Connection, _: Heard) -> None:
        connection.send(data)
        connection.reset()

    return script


def freezes(data: bytes = b"") -> Script:
    """Send these bytes, then nothing more."""

    def script(connection: Connection, _: Heard) -> None:
        connection.send(data)
        connection.wait()

    return script


class Raw:
    """See above. It listens on a loopback address or, with `unix`, on a socket in a folder of its own."""

    def __init__(self, namespace: Namespace | None = None, *, host: str = LOOPBACK, unix: bool = False) -> None:
        self.namespace, self.host = namespace, host
        self.connections: list[Connection] = []
        self.otherwise = says(message(b"raw"))
        """What is played where nothing else is to be."""
        self._scripts: dict[str, Script] = {}
        self._heard: list[Heard] = []
        self._stopped = threading.Event()
        self._threads: list[threading.Thread] = []
        self._folder = tempfile.TemporaryDirectory(prefix="raw-")
        Path(self._folder.name).chmod(0o755)
        self.secret_file = keep_secret(Path(self._folder.name))
        self.path = Path(self._folder.name, "sock") if unix else None
        with inside(namespace):
            self._listener = socket.socket(family(self.path, host))
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.bind(str(self.path) if self.path else (host, 0))
        if self.path:
            self.path.chmod(0o666)
        self._listener.listen(1024)
        self.port = 0 if unix else int(self._listener.getsockname()[1])

    @property
    def url(self) -> str:
        """Where it listens, as metashim's settings have it."""
        return url(self.path, self.host, self.port)

    def connect(self, timeout: float = 3.0) -> socket.socket:
        """A connection to it from where it is."""
        return dial(self.namespace, self.path, self.host, self.port, timeout)

    def play(self, path: str, script: Script) -> None:
        """From now on, what is asked for this path (the target up to `?`) gets this script."""
        self._scripts[path] = script

    def heard(self, path: str | None = None) -> list[Heard]:
        """The requests so far, all or those for a path, in order."""
        return [h for h in tuple(self._heard) if path is None or h.target.partition("?")[0] == path]

    @property
    def bytes(self) -> bytes:
        """Every byte that came, of one connection after the other."""
        return b"".join(bytes(connection.bytes) for connection in tuple(self.connections))

    def forget(self) -> None:
        """Forget what was heard, and the scripts."""
        self._heard.clear()
        self._scripts.clear()
        for connection in self.connections:
            connection.bytes.clear()

    def _accept(self) -> None:
        while not self._stopped.is_set():
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            connection = Connection(sock, self._stopped)
            self.connections.append(connection)
            self._run(self._serve, connection)

    def _serve(self, connection: Connection) -> None:
        with contextlib.suppress(OSError), connection.sock:
            while (heard := connection.request()) is not None:
                self._heard.append(heard)
                path = heard.target.partition("?")[0]
                self._scripts.get(path, self.otherwise)(connection, heard)

    def _run(self, target: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def __enter__(self) -> Raw:
        self._run(self._accept)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        for sock in (self._listener, *(connection.sock for connection in self.connections)):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()
        for thread in self._threads:
            thread.join(CLOSE_SECONDS)
        self._folder.cleanup()
        assert not any(thread.is_alive() for thread in self._threads), "a script of the raw backend does not end"
