"""A server in the foreground, for a test: in a namespace or on the host's own loopback, ended with the test.

    nginx = Nginx(lab.host)
    with Hypervisor(lab, forward_to("http", nginx)) as site, nginx:
        ...

Its address is known from its making on, so that a configuration can name it; it runs within the `with`, which ends
before the hypervisor's, as no process may be left there.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType

from tests.lab import Namespace
from tests.lab.namespace import wait_until

LOOPBACK = "127.0.0.1"
SECRET = "peer-shared-secret"
STOP_SECONDS = 3.0


def inside(namespace: Namespace | None) -> contextlib.AbstractContextManager[None]:
    """In a namespace, or where the test is."""
    return contextlib.nullcontext() if namespace is None else namespace.enter()


def keep_secret(folder: Path, secret: str = SECRET) -> Path:
    """A file with what requests to this backend are signed with."""
    path = folder / "secret"
    path.write_text(f"{secret}\n")
    path.chmod(0o600)
    return path


def family(path: Path | None, host: str) -> socket.AddressFamily:
    """Of a Unix socket, or of an IP address."""
    if path:
        return socket.AF_UNIX
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def url(path: Path | None, host: str, port: int) -> str:
    """An address as metashim's settings have it."""
    if path:
        return f"unix:{path}"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def dial(namespace: Namespace | None, path: Path | None, host: str, port: int, timeout: float) -> socket.socket:
    """A connection to a Unix socket, or to a TCP port, within a namespace. OSError."""
    with inside(namespace):
        sock = socket.socket(family(path, host))
    sock.settimeout(timeout)
    try:
        sock.connect(str(path) if path else (host, port))
    except BaseException:
        sock.close()
        raise
    return sock


def free_port(namespace: Namespace | None, host: str = LOOPBACK) -> int:
    """A TCP port that nobody listens on."""
    with inside(namespace), socket.socket(family(None, host)) as sock:
        sock.bind((host, 0))
        return int(sock.getsockname()[1])


class Foreground:
    """See above. A subclass writes its settings into `folder` and says the `argv` that serves there.

    With `unix` it listens on a socket in its folder, else on `port` of `host`, a loopback address.
    """

    start_seconds = 5.0

    def __init__(self, namespace: Namespace | None = None, *, host: str = LOOPBACK, unix: bool = False) -> None:
        self.namespace, self.host = namespace, host
        self.folder = Path(tempfile.mkdtemp(prefix="backend-"))
        self.folder.chmod(0o755)
        self.secret_file = keep_secret(self.folder)
        self.path = self.folder / "sock" if unix else None
        self.port = 0 if unix else free_port(namespace, host)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def argv(self) -> Sequence[str]:
        """The command that serves in the foreground."""
        raise NotImplementedError

    @property
    def url(self) -> str:
        """Where it listens, as metashim's settings have it."""
        return url(self.path, self.host, self.port)

    def connect(self, timeout: float = 3.0) -> socket.socket:
        """A connection to it from where it is. OSError."""
        return dial(self.namespace, self.path, self.host, self.port, timeout)

    def start(self) -> None:
        """Begin to serve; it accepts connections when this returns. AssertionError with what it wrote."""
        if self.path:
            self.path.unlink(missing_ok=True)  # of one that was killed
        options = {"stdin": subprocess.DEVNULL, "start_new_session": True}
        argv = list(self.argv) if self.namespace is None else self.namespace.argv(self.argv)
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(argv, stdout=log, stderr=log, **options)  # type: ignore[call-overload]
        try:
            wait_until(self._ready, f"{self.argv[0]} to listen", self.start_seconds)
        except TimeoutError:
            self.stop(signal.SIGKILL)
            raise AssertionError(f"{self.argv[0]} does not listen:\n{self.log.read_text()}") from None

    def _ready(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, f"{self.argv[0]} has ended:\n{self.log.read_text()}"
        with contextlib.suppress(OSError), self.connect():
            return True
        return False

    @property
    def log(self) -> Path:
        """What it writes."""
        return self.folder / "log"

    def stop(self, number: int = signal.SIGTERM) -> None:
        """End it; at once, with SIGKILL. Nothing listens when this returns. It may be started again."""
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """It does nothing for a while: its kernel still takes connections and data (SIGSTOP)."""
        assert self._process is not None
        group = self._process.pid
        os.killpg(group, signal.SIGSTOP)
        try:
            yield
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, signal.SIGCONT)

    def close(self) -> None:
        """End it, and remove what it had."""
        self.stop(signal.SIGKILL)
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Foreground:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
