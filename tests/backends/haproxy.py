"""haproxy as a backend that answers by itself: one process, one thread."""

from __future__ import annotations

from collections.abc import Sequence

from tests.backends.process import LOOPBACK, Foreground
from tests.lab import Namespace

CONFIG = """\
global
    nbthread 1
    maxconn 2000
defaults
    mode http
    timeout client 30s
    timeout server 30s
    timeout connect 1s
    timeout http-keep-alive 30s
frontend answers
    bind {bind}
    http-request return status 200 content-type text/plain string {name} if {{ path /name }}
    http-request return status 200 content-type text/plain lf-string "{echo}" if {{ path /who }}
    http-request return status 200 content-type application/octet-stream file {folder}/file if {{ path /file }}
    http-request deny deny_status 429 if {{ path /status/429 }}
    http-request deny deny_status 401 if {{ path /status/401 }}
    http-request return status 200 content-type text/plain string haproxy
"""
ECHO = "%[req.hdr(X-Metashim-Instance)] %[req.hdr(X-Metashim-Project)] %[method] %[pathq]"


class Haproxy(Foreground):
    """`file` is what it answers for /file: of at most 12 KiB, as it is read at the start into a buffer."""

    def __init__(
        self,
        namespace: Namespace | None = None,
        name: str = "haproxy",
        *,
        host: str = LOOPBACK,
        unix: bool = False,
        file: bytes = b"file",
    ) -> None:
        super().__init__(namespace, host=host, unix=unix)
        (self.folder / "file").write_bytes(file)
        bind = f"unix@{self.path} mode 666" if self.path else f"{self.host}:{self.port}"
        config = CONFIG.format(folder=self.folder, bind=bind, name=name, echo=ECHO)
        (self.folder / "haproxy.cfg").write_text(config)

    @property
    def argv(self) -> Sequence[str]:
        return ["/usr/sbin/haproxy", "-q", "-db", "-f", str(self.folder / "haproxy.cfg")]
